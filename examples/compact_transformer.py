"""A transformer on the digits of scikit-learn, trained with group lasso on heads and hidden neurons, then made smaller.

One learns: (1) two regularizers on different parameters of one model: groups="head" takes an attention head whole, its
columns of the output projection too, groups="neuron" a hidden neuron of an MLP with its bias; (2) `compact` takes them out
of nn.TransformerEncoderLayer, with the same outputs; (3) `compare` says what that saves, with the times of this machine;
(4) the small model trains on. An image is 8 tokens, its rows. The digits come with scikit-learn; nothing is downloaded.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparselayers as sl

EPOCHS = 15


class RowsOfPixels(nn.Module):
    """8 x 8 images as 8 tokens, through two encoder layers; their mean says which digit it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, nhead=8, dim_feedforward=128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(images) + self.place).mean(1))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; pixels in [0, 1]."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1200]], y[order[:1200]], x[order[1200:]], y[order[1200:]]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int) -> None:
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model.eval()(x).argmax(-1) == y).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    x, y, x_test, y_test = digits()
    model = RowsOfPixels()
    regularizers = [
        sl.Regularizer(model, sl.GroupL2(), lam=0.03, groups="head"),
        sl.Regularizer(model, sl.GroupL2(), lam=0.006, groups="neuron", include="*.linear1.weight"),
    ]
    train(model, sl.ProxAdamW(model.parameters(), lr=5e-3, regularizer=regularizers), x, y, EPOCHS)
    small = sl.compact(model, x_test[:1])

    print("layer  heads  hidden neurons")
    for i, (old, new) in enumerate(zip(model.encoder.layers, small.encoder.layers, strict=True)):
        heads = f"{new.self_attn.num_heads}/{old.self_attn.num_heads}"
        print(f"{i:<5}  {heads:>5}  {f'{new.linear1.out_features}/{old.linear1.out_features}':>14}")
    print(f"\ntest accuracy: {accuracy(model, x_test, y_test):.1%}, smaller: {accuracy(small, x_test, y_test):.1%}\n")
    print(sl.compare(model, small, x_test[:1], batch_sizes=(1, 256)))

    train(small, torch.optim.AdamW(small.parameters(), lr=1e-3), x, y, 3)  # a new optimizer: the parameters are new
    print(f"\nafter three more epochs without a penalty: {accuracy(small, x_test, y_test):.1%}")


if __name__ == "__main__":
    main()
