"""Networks: tensor to tensor, no probability.

Every network of the library acts on the last dimension and leaves the leading ones alone, so `(batch, d)` and
`(models, batch, d)` both work; those that convolve make images of it inside. A network that a user brings sees rows only,
`(batch, *shape)` or `(batch, k)`: `EncodeRows` and `DecodeRows` call it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nbvae import checks

# Residual blocks in the encoder, and in the decoder, of those that convolve.
BLOCKS = {"conv": 0, "residual": 2}
NETWORKS = ("linear", "mlp", *BLOCKS)
CONDITIONINGS = ("film", "gates")


class LinearEncoder(nn.Module):
    """Mean linear in x, log-variance a free constant per latent: the encoder N(Vx + a, diag v) of the linear VAE.

    Lucas et al. (2019), eq. 6: the optimal posterior variance of a linear-Gaussian VAE does not depend on x. Learned is
    log v, relative to `unit_variance`: that is 1, or the variance that the encoder was given (`VAE.from_linear`), which a
    logarithm would round.

    - `n_in`: the number n of dimensions of x.
    - `latent_dim`: the number k of latents.

    Called with x (*batch, n), it returns mean and log-variance, each (*batch, k).

    >>> mean, log_variance = LinearEncoder(6, 2)(torch.zeros(5, 6))
    >>> tuple(mean.shape), log_variance[0].tolist()
    ((5, 2), [0.0, 0.0])
    """

    unit_variance: Tensor

    def __init__(self, n_in: int, latent_dim: int):
        super().__init__()
        self.mean = nn.Linear(n_in, latent_dim)
        self.log_variance = nn.Parameter(torch.zeros(latent_dim))
        self.register_buffer("unit_variance", torch.ones(latent_dim))

    def forward(self, x: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        mean = self.mean(x)
        return mean, (self.log_variance + self.unit_variance.log()).expand_as(mean)


class TwoHeads(nn.Module):
    """A network `body` whose output is the mean and, behind it, the log-variance, neither clamped.

    Called with x (*batch, n), it returns mean and log-variance, each (*batch, k) where the body's output is (*batch, 2k).

    >>> mean, log_variance = TwoHeads(mlp(6, 4, (5,)))(torch.zeros(3, 6))
    >>> tuple(mean.shape), tuple(log_variance.shape)
    ((3, 2), (3, 2))
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Float[Tensor, "*batch n"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        mean, log_variance = self.body(x).chunk(2, dim=-1)
        return mean, log_variance


def mlp(n_in: int, n_out: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them and no activation at the end.

    - `n_in`, `n_out`: the numbers of dimensions that go in and that come out.
    - `hidden`: the widths of the layers between, from the input on; () makes a single linear layer.

    >>> len(mlp(64, 16, (128, 32)))  # three linear layers, two ReLUs
    5
    """
    layers: list[nn.Module] = []
    widths = [n_in, *hidden, n_out]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def encoder(network: str, shape: Sequence[int], latent_dim: int, hidden: Sequence[int]) -> nn.Module:
    """Network (*batch, n) -> mean and log-variance, each (*batch, latent_dim); n is the product of `shape`.

    - `network`: one of `NETWORKS`.
    - `shape`: the shape of one example; for "conv" and "residual" (channels, height, width).
    - `latent_dim`: the number of latents.
    - `hidden`: widths of an "mlp" from the data inwards, or the channels after each halving of an image.

    Raises `ValueError` for another network, and for data that are no images where it convolves.

    >>> mean, log_variance = encoder("conv", (1, 8, 8), 3, (4, 6))(torch.zeros(5, 64))
    >>> tuple(mean.shape)
    (5, 3)
    """
    if checks.choice("network", network, NETWORKS) == "linear":
        return LinearEncoder(math.prod(shape), latent_dim)
    return TwoHeads(
        mlp(math.prod(shape), 2 * latent_dim, hidden)
        if network == "mlp"
        else ConvEncoder(shape, 2 * latent_dim, hidden, BLOCKS[network])
    )


def decoder(network: str, latent_dim: int, shape: Sequence[int], n_out: int, hidden: Sequence[int]) -> nn.Module:
    """Network (*batch, latent_dim) -> (*batch, n_out).

    - `network`: one of `NETWORKS`.
    - `latent_dim`: the number of latents.
    - `shape`: the shape of one example.
    - `n_out`: what the likelihood asks for, its `n_outputs`; of a network that convolves a multiple of the product of `shape`.
    - `hidden`: the encoder's, and reversed here.

    Raises `ValueError` for another network, and for data or outputs that are no images where it convolves.

    >>> tuple(decoder("mlp", 3, (1, 8, 8), 64, (128,))(torch.zeros(5, 3)).shape)
    (5, 64)
    """
    if checks.choice("network", network, NETWORKS) in BLOCKS:
        return ConvDecoder(latent_dim, shape, n_out, hidden, BLOCKS[network])
    return mlp(latent_dim, n_out, () if network == "linear" else hidden[::-1])


def conditioned(
    network: str, shape: Sequence[int], latent_dim: int, n_out: int, hidden: Sequence[int]
) -> tuple["ConditionedMLP | ConvEncoder", "ConditionedMLP | ConvDecoder"]:
    """Encoder (*batch, n) -> (*batch, 2 latent_dim) and decoder as above, both modulated by parts of a `Conditioning`.

    The arguments are those of `encoder` and `decoder`, and `network` is any but "linear". Without parts both are ordinary.

    >>> inward, outward = conditioned("mlp", (6,), 2, 6, (5,))
    >>> tuple(inward(torch.zeros(3, 6), []).shape), inward.widths, outward.widths
    ((3, 4), (5, 4), (5, 6))
    """
    if network == "mlp":
        return ConditionedMLP(math.prod(shape), 2 * latent_dim, hidden), ConditionedMLP(latent_dim, n_out, hidden[::-1])
    blocks = BLOCKS[network]
    return ConvEncoder(shape, 2 * latent_dim, hidden, blocks), ConvDecoder(latent_dim, shape, n_out, hidden, blocks)


def default_hidden(network: str, n: int) -> tuple[int, ...]:
    """Widths of an "mlp", channels of the others, for data of n dimensions.

    >>> default_hidden("mlp", 64), default_hidden("mlp", 784), default_hidden("residual", 784)
    ((128,), (400, 400), (64, 128, 256))
    """
    small, large = ((32, 64), (64, 128, 256)) if network in BLOCKS else ((128,), (400, 400))
    return small if n <= 256 else large


def given(name: str, module: Any) -> nn.Module:
    """Return a network that a user brings, or raise `ValueError` where it is none that could be trained.

    >>> given("encoder", nn.Linear)
    Traceback (most recent call last):
    ValueError: encoder must be a torch module, and Linear is a class: make one, encoder=Linear(...)
    """
    if isinstance(module, type):
        raise ValueError(
            f"{name} must be a torch module, and {module.__name__} is a class: make one, {name}={module.__name__}(...)"
        )
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{name} must be a torch module, whose weights are trained with the model; got {type(module).__name__}"
        )
    if any(is_lazy(value) for value in [*module.parameters(), *module.buffers()]):
        raise ValueError(f"{name} has layers that get their weights at the first call: call it on a batch before it is given")
    return module


class EncodeRows(nn.Module):
    """How an encoder that a user brings is called, and what it may return. It has no weights.

    - `rank`: the number of dimensions of one example.
    - `latent_dim`: the number k of latents.

    Called with the encoder and x (*some, *shape), it returns mean and log-variance, each (*some, k). The encoder is called
    once, with rows (batch, *shape): further leading dimensions are counted as one. It returns mean and log-variance, each
    (batch, k), or both in one tensor (batch, 2k), the mean in front. Raises `ValueError` where it returns anything else.

    >>> own = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    >>> mean, log_variance = EncodeRows(rank=3, latent_dim=3)(own, torch.zeros(2, 5, 1, 8, 8))
    >>> tuple(mean.shape)
    (2, 5, 3)
    """

    def __init__(self, rank: int, latent_dim: int):
        super().__init__()
        self.rank, self.latent_dim = rank, latent_dim

    def forward(
        self, encoder: nn.Module, x: Float[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*some k"], Float[Tensor, "*some k"]]:
        leading, k = x.shape[: -self.rank], self.latent_dim
        rows = x if len(leading) == 1 else x.reshape(-1, *x.shape[-self.rank :])
        made = encoder(rows)
        each, both = (len(rows), k), (len(rows), 2 * k)
        if isinstance(made, Tensor) and made.shape == both:
            made = made.chunk(2, dim=-1)
        two = isinstance(made, tuple | list) and len(made) == 2
        if not two or not all(isinstance(part, Tensor) and part.shape == each for part in made):
            raise ValueError(
                f"the encoder must return mean and log-variance, each {each}, or one tensor {both}, "
                f"for x {tuple(rows.shape)}; it returned {_described(made)}"
            )
        mean, log_variance = made
        return (mean, log_variance) if rows is x else (mean.reshape(*leading, k), log_variance.reshape(*leading, k))


class DecodeRows(nn.Module):
    """How a decoder that a user brings is called, and what it may return. It has no weights.

    - `shape`: the shape of one example, with the product n.
    - `n_out`: what the likelihood asks for, its `n_outputs`.

    Called with the decoder and z (*some, k), it returns (*some, n_out). The decoder is called once, with rows (batch, k):
    further leading dimensions are counted as one. It returns (batch, n_out); or (batch, *shape) where n_out is n; or
    (batch, 2c, ...) for a `shape` (c, ...) where n_out is 2n, the locations in front. Raises `ValueError` where it returns
    anything else.

    >>> own = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 8, 8)))
    >>> tuple(DecodeRows((1, 8, 8), n_out=64)(own, torch.zeros(2, 5, 3)).shape)
    (2, 5, 64)
    """

    def __init__(self, shape: Sequence[int], n_out: int):
        super().__init__()
        several, rest = divmod(n_out, math.prod(shape))
        self.n_out, self.image = n_out, None if rest else (several * shape[0], *shape[1:])

    def forward(self, decoder: nn.Module, z: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch outputs"]:
        leading = z.shape[:-1]
        rows = z if len(leading) == 1 else z.reshape(-1, z.shape[-1])
        made = decoder(rows)
        allowed = {(len(rows), self.n_out): None, (len(rows), *(self.image or (self.n_out,))): None}
        if not isinstance(made, Tensor) or tuple(made.shape) not in allowed:
            raise ValueError(
                f"the decoder must return a tensor {' or '.join(map(str, allowed))} "
                f"for z {tuple(rows.shape)}; it returned {_described(made)}"
            )
        return made.reshape(*leading, self.n_out)


class WaterLevel(nn.Module):
    """The response of the linear VAE's optimum to β at fixed σ: a gate for each latent, and its posterior log-variance.

    With s = βσ² and λ_i the eigenvalue of latent i, decoder column and encoder row of the optimum are those of β → 0 times
    g_i = √(1 − s/λ_i)₊, and the posterior variance is min(1, s/λ_i) (Lucas et al. 2019, at every β). One number
    ℓ_i = log(λ_i/σ²) for each latent is all that has to be learned. At first ℓ_i is the largest log β + 1: no gate is closed.

    - `latent_dim`: the number k of latents.
    - `highest`: the largest β.

    Called with log β (*batch, 1), it returns gates and log-variances, each (*batch, k).

    >>> gate, log_variance = WaterLevel(2, highest=1.0)(torch.tensor([[-20.0], [2.0]]))
    >>> [[round(value) for value in row] for row in gate.tolist()]
    [[1, 1], [0, 0]]
    """

    def __init__(self, latent_dim: int, highest: float):
        super().__init__()
        self.log_ratio = nn.Parameter(torch.full((latent_dim,), math.log(highest) + 1.0))

    def forward(self, log_beta: Float[Tensor, "*batch 1"]) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Gate and posterior log-variance."""
        level = log_beta - self.log_ratio  # log s/λ
        return _root_gate(level), level.clamp(max=0.0)


class BetaFeatures(nn.Module):
    """Smooth features of log β: Gaussian bumps, evenly along the logarithm of the range.

    - `beta_range`: the smallest and the largest β.
    - `size`: the number of features, at least two.

    Called with log β (*batch, 1), it returns (*batch, size).

    >>> tuple(BetaFeatures((0.01, 10.0))(torch.zeros(5, 1)).shape)
    (5, 16)
    """

    centres: Tensor

    def __init__(self, beta_range: tuple[float, float], size: int = 16):
        super().__init__()
        low, high = (math.log(beta) for beta in beta_range)
        self.size, self.sharpness = size, math.sqrt(0.5) * (size - 1) / (high - low)
        self.register_buffer("centres", torch.linspace(low, high, size), persistent=False)

    def forward(self, log_beta: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch features"]:
        return ((log_beta - self.centres) * self.sharpness).square().neg().exp()


class Conditioning(nn.Module):
    """Functions of log β that modulate the layers of an encoder and a decoder `ConditionedMLP`, in one matrix product.

    - "film": the outputs y of every layer become ay + b, with a and b linear in `BetaFeatures` (Perez et al. 2018). They start
      at 1 and 0: at first the networks are ordinary ones at every β, and no unit is dead for all.
    - "gates": those of every hidden layer are multiplied by a function of w log β + v, a sigmoid in the encoder and √(1 − eˣ)₊
      in the decoder: the Multi-Rate VAE (Bae et al. 2023) with log β as it is, to compare with.

    The arguments are

    - `kind`: one of `CONDITIONINGS`, the two above.
    - `beta_range`: the smallest and the largest β.
    - `encoder`, `decoder`: the widths of their layers, or numbers of channels, from the input on.

    Called with log β (*some, 1), it returns two lists of modulations (*some, width), the encoder's and the decoder's.

    >>> encoder, decoder = Conditioning("film", (0.1, 10.0), (5, 4), (5, 6))(torch.zeros(1))
    >>> [tuple(part.shape) for part in encoder]
    [(5,), (5,), (4,), (4,)]
    """

    def __init__(self, kind: str, beta_range: tuple[float, float], encoder: Sequence[int], decoder: Sequence[int]):
        super().__init__()
        self.film = checks.choice("conditioning", kind, CONDITIONINGS) == "film"
        # Of each layer's width two parts, or of each hidden one's.
        encoder, decoder = (
            [w for w in widths for _ in "ab"] if self.film else list(widths[:-1]) for widths in (encoder, decoder)
        )
        self.sizes, self.cut = [*encoder, *decoder], len(encoder)
        features = BetaFeatures(beta_range) if self.film else None
        self.features = features
        self.modulation = nn.Linear(features.size if features else 1, sum(self.sizes))
        if self.film:
            nn.init.zeros_(self.modulation.weight)
            with torch.no_grad():
                for index, part in enumerate(self.modulation.bias.split(self.sizes)):
                    part.fill_(1.0 - index % 2)

    def forward(self, log_beta: Float[Tensor, "*some 1"]) -> tuple[list[Tensor], list[Tensor]]:
        """Modulations (*some, width) of the encoder, and of the decoder."""
        parts = self.modulation(log_beta if self.features is None else self.features(log_beta)).split(self.sizes, dim=-1)
        encoder, decoder = list(parts[: self.cut]), list(parts[self.cut :])
        if self.film:
            return encoder, decoder
        return [part.sigmoid() for part in encoder], [_root_gate(part) for part in decoder]


class ConditionedMLP(nn.Module):
    """`mlp` whose layers are modulated by what `Conditioning` makes of log β.

    - `n_in`, `n_out`: the numbers of dimensions that go in and that come out.
    - `hidden`: the widths of the layers between, from the input on.

    Called with x (*batch, n_in) and the encoder's or the decoder's part of a `Conditioning`, it returns (*batch, n_out).

    >>> tuple(ConditionedMLP(6, 4, (5,))(torch.zeros(3, 6), []).shape)
    (3, 4)
    """

    def __init__(self, n_in: int, n_out: int, hidden: Sequence[int]):
        super().__init__()
        self.widths = (*hidden, n_out)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([n_in, *self.widths]))

    def forward(self, x: Float[Tensor, "*batch n"], parts: Sequence[Tensor]) -> Float[Tensor, "*batch m"]:
        modulate = _Modulation(parts, len(self.widths))
        for index, layer in enumerate(self.layers):
            x = modulate(layer(x if index == 0 else x.relu()))
        return x


class ConvEncoder(nn.Module):
    """Convolutions that halve an image's sides, residual blocks, and a linear layer; the parts of log β modulate channels.

    - `shape`: (channels, height, width) of the input.
    - `n_out`: the number of outputs.
    - `channels`: how many after each halving, which rounds up; at least one.
    - `blocks`: the number of residual blocks, 0 for none.

    Called with flat images (*batch, n) and perhaps the parts of a `Conditioning`, it returns (*batch, n_out).

    >>> tuple(ConvEncoder((1, 8, 8), 6, (4, 8), blocks=2)(torch.zeros(5, 64)).shape)
    (5, 6)
    """

    def __init__(self, shape: Sequence[int], n_out: int, channels: Sequence[int], blocks: int):
        super().__init__()
        self.shape = tuple(shape)
        sides = _halved(shape, channels)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise([shape[0], *channels]))
        self.blocks = nn.ModuleList(ResidualBlock(channels[-1]) for _ in range(blocks))
        self.head = nn.Linear(channels[-1] * math.prod(sides[-1]), n_out)
        self.widths = (*channels, *_widths(self.blocks), n_out)
        _without_biases(self)

    def forward(self, x: Float[Tensor, "*batch n"], parts: Sequence[Tensor] = ()) -> Float[Tensor, "*batch m"]:
        leading = x.shape[:-1]
        modulate = _Modulation(parts, len(self.widths), leading)
        images = x.reshape(-1, *self.shape)
        for index, layer in enumerate(self.down):
            images = modulate(layer(images if index == 0 else images.relu()))
        for block in self.blocks:
            images = block(images, modulate)
        return modulate(self.head(images.relu().flatten(1))).reshape(*leading, -1)


class ConvDecoder(nn.Module):
    """`ConvEncoder` reversed: a linear layer, residual blocks, and transposed convolutions that double the sides again.

    - `latent_dim`: the number k of latents.
    - `shape`: (channels, height, width) of one image.
    - `n_out`: the number of outputs, a multiple of the product of `shape`.
    - `channels`: the encoder's, and reversed here.
    - `blocks`: the number of residual blocks, 0 for none.

    Called with z (*batch, k) and perhaps the parts of a `Conditioning`, it returns (*batch, n_out).

    >>> tuple(ConvDecoder(3, (1, 8, 8), 64, (4, 8), blocks=2)(torch.zeros(5, 3)).shape)
    (5, 64)
    """

    def __init__(self, latent_dim: int, shape: Sequence[int], n_out: int, channels: Sequence[int], blocks: int):
        super().__init__()
        images, rest = divmod(n_out, math.prod(shape))
        if rest:
            raise ValueError("a network that convolves makes images: sigma='z' needs network='mlp' or 'linear'")
        channels, sides = tuple(channels)[::-1], _halved(shape, channels)[::-1]
        self.small = (channels[0], *sides[0])
        self.stem = nn.Linear(latent_dim, math.prod(self.small))
        self.blocks = nn.ModuleList(ResidualBlock(channels[0]) for _ in range(blocks))
        self.up = nn.ModuleList()
        for a, b, before, after in zip(channels, [*channels[1:], images * shape[0]], sides[:-1], sides[1:], strict=True):
            # Doubling gives 2h − 1; added is what halving rounded away.
            added = after[0] - 2 * before[0] + 1, after[1] - 2 * before[1] + 1
            self.up.append(nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=added))
        self.widths = (channels[0], *_widths(self.blocks), *channels[1:], images * shape[0])
        _without_biases(self)

    def forward(self, z: Float[Tensor, "*batch k"], parts: Sequence[Tensor] = ()) -> Float[Tensor, "*batch m"]:
        leading = z.shape[:-1]
        modulate = _Modulation(parts, len(self.widths), leading)
        images = modulate(self.stem(z.reshape(-1, z.shape[-1])).unflatten(-1, self.small))
        for block in self.blocks:
            images = block(images, modulate)
        for layer in self.up:
            images = modulate(layer(images.relu()))
        return images.reshape(*leading, -1)


class ResidualBlock(nn.Module):
    """x plus a 3 × 3 convolution of x to a quarter of its channels and a 1 × 1 one back, ReLU before each.

    Called with images (batch, channels, height, width) and a function that modulates what each convolution gives.

    >>> tuple(ResidualBlock(8)(torch.zeros(2, 8, 4, 4), lambda images: images).shape)
    (2, 8, 4, 4)
    """

    def __init__(self, channels: int):
        super().__init__()
        narrow = max(1, channels // 4)
        self.inward, self.outward = nn.Conv2d(channels, narrow, 3, padding=1), nn.Conv2d(narrow, channels, 1)
        self.widths = (narrow, channels)

    def forward(self, x: Tensor, modulate: Callable[[Tensor], Tensor]) -> Tensor:
        return x + modulate(self.outward(modulate(self.inward(x.relu())).relu()))


class _Modulation:
    """Called with what each layer of a network gave, in order: scales and shifts it, or gates it, by the layer's parts.

    `leading` flattens parts (*leading, width) of a network that makes images: (images, width, 1, 1) for its channels.
    """

    def __init__(self, parts: Sequence[Tensor], layers: int, leading: Sequence[int] | None = None):
        self.film = len(parts) == 2 * layers
        self.leading = leading
        self.parts = iter(parts)

    def __call__(self, x: Tensor) -> Tensor:
        part = self._next(x)
        if part is None:
            return x
        return x * part + self._next(x) if self.film else x * part

    def _next(self, x: Tensor) -> Any:
        part = next(self.parts, None)
        if part is None or self.leading is None:
            return part
        part = part.expand(*self.leading, -1).reshape(-1, part.shape[-1])
        return part[..., None, None] if x.dim() == 4 else part


def _without_biases(network: nn.Module) -> None:
    """Start at biases of zero.

    PyTorch's random ones outweigh what arrives through several convolutions: on MNIST they keep a third of the units that
    enter the encoder's last layer off for every image and every β.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)


def _halved(shape: Sequence[int], channels: Sequence[int]) -> list[tuple[int, int]]:
    """The sides of an image, and after each halving."""
    if len(shape) != 3:
        raise ValueError(f"a network that convolves needs images (channels, height, width); these data have {tuple(shape)}")
    if not channels:
        raise ValueError("hidden must name the channels after each halving of an image, such as (32, 64)")
    return [(-(-shape[1] // 2**level), -(-shape[2] // 2**level)) for level in range(len(channels) + 1)]


def _described(made: Any) -> str:
    """The shape of what a network returned, or its kind where it is no tensor."""
    if isinstance(made, Tensor):
        return str(tuple(made.shape))
    if isinstance(made, tuple | list):
        return f"a {type(made).__name__} of {', '.join(map(_described, made)) or 'nothing'}"
    return type(made).__name__


def _widths(blocks: Any) -> list[int]:
    return [width for block in blocks for width in block.widths]


def _root_gate(x: Tensor) -> Tensor:
    open_share = -torch.expm1(x.clamp(max=0.0))
    # The root's slope has no bound at 0: near it the gate is closed.
    return torch.where(open_share > 1e-4, open_share.clamp(min=1e-4).sqrt(), 0.0)
