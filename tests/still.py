"""A model without randomness, for tests that compare losses at one draw."""


class Still:
    """A model whose posterior always draws the same noise for the same row: what is left is a function of x and weights."""

    def __init__(self, model, noise):
        self.model, self.noise = model, noise
        self.likelihood, self.prior = model.likelihood, model.prior

    def posterior(self, x):
        posterior, noise = self.model.posterior(x), self.noise
        posterior.rsample = lambda: posterior.mean + posterior.stddev * noise
        return posterior
