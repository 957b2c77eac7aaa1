"""From nats to bytes: images as streams that a trained VAE makes short, and that decode again.

`compress(model, images)` is lossless, by bits-back on the ANS coder of the package constriction: its size, net of what
`report` says was there before the images, is −ELBO.

`Embedded` is lossy: a stream of the codes of a ladder of β, any prefix of which decodes, by relative entropy coding.

    python -m nbvae.coding compress RUN IN.npz OUT.nbv
    python -m nbvae.coding decompress RUN IN.nbv OUT.npz
"""

from nbvae.coding.embedded import Embedded, Embedding, Rung
from nbvae.coding.lossless import Report, compress, decompress, report

__all__ = ["Embedded", "Embedding", "Report", "Rung", "compress", "decompress", "report"]
