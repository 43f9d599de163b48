"""One attention model, four mappings from scores to weights, by changing one word.

One learns: (1) the call is torch's own `scaled_dot_product_attention` with `mapping=` added; "softmax" agrees with
torch; (2) how many weights are exactly zero under each mapping; (3) how to check the gradients of a sparse model
with `gradcheck`: in float64, on a small case, away from ties, and for "scale_free" with a solution that is accurate
enough.
"""

import torch
from torch import Tensor, nn

import sparselayers.functional as F

MAPPINGS = ("softmax", "sparsemax", "entmax15", "scale_free")


class Attention(nn.Module):
    """Self-attention with one head per query, key and value projection; `mapping` is the only choice."""

    def __init__(self, width: int, n_heads: int, mapping: str) -> None:
        super().__init__()
        self.n_heads, self.mapping = n_heads, mapping
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (batch, heads, length, width / heads)."""
        query, key, value = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2) for part in self.project(x).chunk(3, -1)
        )
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, mapping=self.mapping)
        return self.out(mixed.transpose(-3, -2).flatten(-2))

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights, read off with the identity in the place of the values."""
        query, key, _ = self.heads(x)
        eye = torch.eye(x.shape[-2], dtype=x.dtype).expand(*query.shape[:-1], -1)
        return F.scaled_dot_product_attention(query, key, eye, is_causal=True, mapping=self.mapping)


def gradients_agree(mapping: str) -> bool:
    """Analytic against numerical derivatives; queries lie outside the hull of the keys, so that weights are unique."""
    query = torch.randn(1, 3, 4, dtype=torch.float64) + 2
    key, value = torch.randn(1, 5, 4, dtype=torch.float64), torch.randn(1, 5, 2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    if mapping == "scale_free":
        return torch.autograd.gradcheck(lambda q, k, v: F.scale_free_attention(q, k, v, tol=1e-12), inputs)
    return torch.autograd.gradcheck(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mapping=mapping), inputs)


def main() -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(8, 24, 32)
    softmax = Attention(32, 4, "softmax")
    reference = softmax(x)
    visible = torch.ones(24, 24).tril().bool()

    print("mapping     zero weights  output vs softmax  gradcheck")
    for mapping in MAPPINGS:
        model = Attention(32, 4, mapping)
        model.load_state_dict(softmax.state_dict())
        with torch.no_grad():
            zeros = (model.weights(x)[..., visible] == 0).float().mean()
            change = (model(x) - reference).norm() / reference.norm()
        print(f"{mapping:10s}  {zeros:12.1%}  {change:17.3f}  {gradients_agree(mapping)!s:>9}")

    theirs = nn.functional.scaled_dot_product_attention(*softmax.heads(x), is_causal=True)
    ours = F.scaled_dot_product_attention(*softmax.heads(x), is_causal=True, mapping="softmax")
    print(
        f'\nlargest difference between mapping="softmax" and torch: {float((theirs - ours).abs().max().detach()):.1e}'
    )


if __name__ == "__main__":
    main()
