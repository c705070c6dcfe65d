"""The backprop twin: the same blocks, trained as a whole, so that what differs is the learning rule.

The image enters alone, without a label plane; the last block's output is read out linearly, and cross-entropy is the
one loss. Augmentation, batches, epochs and Adam's settings are the row's, and the engine, checkpoint and record are
those of every training.
"""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ffrepro.network import Block, Network, Norm, chain, initialise
from ffrepro.randomness import generator


class Classifier(Network):
    """Blocks and a linear read-out of the flattened output of the last one, with bias.

    shape: (C, H, W) of an image. blocks: (channels out, whether it pools) of each. Initial weights depend on `seed`
    alone: U(-1/sqrt(fan in), +) throughout, PyTorch's default for these layers.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, blocks: list[tuple[int, bool]], norm: Norm, seed: int
    ) -> None:
        super().__init__()
        made, (channels, height, width) = chain(shape, blocks, norm)
        self.classes = classes
        self.blocks: list[Block] = nn.ModuleList(made)  # type: ignore[assignment]
        self.read_out = nn.Linear(channels * height * width, classes)
        draws = generator(seed, "initial weights")
        for block in made:
            initialise(block.conv, draws)
        initialise(self.read_out, draws)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, classes) float32, whatever the precision of the blocks."""
        h = images
        for block in self.blocks:
            h = block(h)
        result: Tensor = self.read_out(h.flatten(1)).float()
        return result


def loss(network: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, separation) of a batch: cross-entropy (1,), and by how much the true label's logit leads (1, B).

    images: (B, C, H, W) normalised; labels: (B,). The separation is the true label's logit less the largest other one,
    what a wrong label's goodness is to Forward-Forward.
    """
    logits = network.logits(images)
    own = logits.detach().gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.detach().scatter(1, labels.unsqueeze(1), float("-inf")).amax(1)
    return cross_entropy(logits, labels).view(1), (own - others).view(1, -1)
