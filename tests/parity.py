"""Sparse attention inside models of transformers, measured: `python -m tests.parity` prints the table.

Models are tiny and randomly initialised, with weights large enough that attention is far from uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import transformers as hf
from torch import Tensor, nn

from sparselayers.integrations.transformers import NAMES, register

VOCABULARY, LENGTH, PADS = 50, 11, (4, 2, 0)
CHECK = "sparse_softmax_check"
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SEQ2SEQ = {"vocab_size": VOCABULARY, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}


def built(kind: type[nn.Module], config: hf.PreTrainedConfig, scale: float = 0.3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=scale)
    return model


def llama(kv_heads: int = 2, **more) -> nn.Module:
    return built(hf.LlamaForCausalLM, hf.LlamaConfig(**SIZES, num_key_value_heads=kv_heads, **more))


def mistral() -> nn.Module:
    return built(hf.MistralForCausalLM, hf.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4))


def bert(**more) -> nn.Module:
    return built(hf.BertModel, hf.BertConfig(**SIZES, **more))


def t5() -> nn.Module:
    return built(hf.T5ForConditionalGeneration, hf.T5Config(**SEQ2SEQ, decoder_start_token_id=0))


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, VOCABULARY, (len(PADS), LENGTH), generator=torch.Generator().manual_seed(seed))


def padding(side: str) -> Tensor:
    """(3, 11), 1 = a token: rows of 4, 2 and 0 pads."""
    place, pads = torch.arange(LENGTH), torch.tensor(PADS).unsqueeze(-1)
    return (place >= pads if side == "left" else place < LENGTH - pads).long()


def output(model: nn.Module, name: str, **inputs) -> Tensor:
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(**inputs)[0]


def cached(model: nn.Module, name: str, ids: Tensor, mask: Tensor, prompt: int = 6) -> Tensor:
    """Logits of a prompt and then one token at a time, keys and values from the cache."""
    model.set_attn_implementation(name)
    with torch.no_grad():
        step = model(ids[:, :prompt], attention_mask=mask[:, :prompt], use_cache=True)
        logits = [step.logits]
        for t in range(prompt, ids.shape[1]):
            past = step.past_key_values
            step = model(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=past, use_cache=True)
            logits.append(step.logits)
    return torch.cat(logits, 1)


def generated(model: nn.Module, name: str, ids: Tensor, mask: Tensor, **options) -> Tensor:
    model.set_attn_implementation(name)
    return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, **options)


def gradients(model: nn.Module, name: str, ids: Tensor, mask: Tensor) -> Tensor:
    model.set_attn_implementation(name)
    model.zero_grad()
    # A pad that attends to nothing is 0 here and uniform in eager: no loss on what follows a pad.
    ignored = (mask == 0) | (mask.roll(1, -1) == 0)
    model(ids, attention_mask=mask, labels=ids.masked_fill(ignored, -100)).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def apart(one: Tensor, other: Tensor, where: Tensor | None = None) -> float:
    difference = (one - other).abs()
    return float((difference if where is None else difference[where.bool()]).max())


def against_eager() -> Iterator[tuple[str, Callable[[], float]]]:
    """(situation, largest difference between the check mapping and eager) where a token stands."""
    ids, left, right = tokens(), padding("left"), padding("right")
    every = torch.ones_like(ids)

    def same(model: nn.Module, mask: Tensor | None, **inputs) -> float:
        pair = [output(model, name, attention_mask=mask, **inputs) for name in (CHECK, "eager")]
        return apart(*pair, where=mask if mask is not None and mask.shape == pair[0].shape[:2] else None)

    def with_cache(model: nn.Module, mask: Tensor) -> float:
        return apart(cached(model, CHECK, ids, mask), output(model, "eager", input_ids=ids, attention_mask=mask), mask)

    def other_tokens(model: nn.Module, mask: Tensor) -> float:
        return float((generated(model, CHECK, ids, mask) != generated(model, "eager", ids, mask)).sum())

    def by_position() -> float:
        """Three sequences packed into one row are told apart by their positions."""
        positions = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3]).expand(3, -1)
        return same(llama(), None, input_ids=ids, position_ids=positions, use_cache=False)

    def four_dimensional() -> float:
        allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(3, 1, -1, -1)
        added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        return same(llama(), added, input_ids=ids)

    def bidirectional() -> float:
        return same(llama(is_causal=False), right, input_ids=ids)

    yield "llama: no padding", lambda: same(llama(), None, input_ids=ids)
    for heads in (1, 2, 4):
        yield (
            f"llama: left padding, {heads} key heads of 4",
            lambda heads=heads: same(llama(heads), left, input_ids=ids),
        )
    yield "llama: right padding", lambda: same(llama(), right, input_ids=ids)
    yield "llama: packed by position_ids", by_position
    yield "llama: 4-d additive mask", four_dimensional
    yield "llama: config.is_causal=False, padding", bidirectional
    yield "llama: KV cache, left padding", lambda: with_cache(llama(), left)
    yield (
        "llama: gradients",
        lambda: apart(gradients(llama(), CHECK, ids, left), gradients(llama(), "eager", ids, left)),
    )
    yield "llama: generate, tokens that differ", lambda: other_tokens(llama(), left)
    yield "mistral: sliding window 4, left padding", lambda: same(mistral(), left, input_ids=ids)
    yield "mistral: sliding window 4, KV cache", lambda: with_cache(mistral(), every)
    yield "bert: no padding", lambda: same(bert(), None, input_ids=ids)
    yield "bert: right padding", lambda: same(bert(), right, input_ids=ids)
    yield "bert: decoder, left padding", lambda: same(bert(is_decoder=True), left, input_ids=ids)
    yield "t5: position bias, padding", lambda: same(t5(), right, input_ids=ids, decoder_input_ids=tokens(1))
    yield "t5: generate, tokens that differ", lambda: other_tokens(t5(), right)


def by_itself(name: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """(situation, largest difference of a mapping with itself where there should be none)."""
    ids, left = tokens(), padding("left")
    every = torch.ones_like(ids)

    def leak(model: nn.Module, mask: Tensor) -> float:
        """What other last four tokens change in the outputs before them."""
        changed = ids.clone()
        changed[:, -4:] = tokens(7)[:, -4:]
        pair = [output(model, name, input_ids=x, attention_mask=mask)[:, :-4] for x in (ids, changed)]
        return apart(*pair, where=mask[:, :-4])

    def with_cache(model: nn.Module, mask: Tensor) -> float:
        return apart(cached(model, name, ids, mask), output(model, name, input_ids=ids, attention_mask=mask), mask)

    def alone() -> float:
        """A row of a padded batch against the same row without its pads."""
        model = llama()
        batch = output(model, name, input_ids=ids, attention_mask=left)
        rows = [output(model, name, input_ids=ids[i : i + 1, pads:]) for i, pads in enumerate(PADS)]
        return max(apart(batch[i, pads:], row[0]) for i, (row, pads) in enumerate(zip(rows, PADS, strict=True)))

    def recomputed() -> float:
        model = llama()
        return float((generated(model, name, ids, left) != generated(model, name, ids, left, use_cache=False)).sum())

    yield "llama: later tokens changed", lambda: leak(llama(), every)
    yield "llama: later tokens changed, left padding", lambda: leak(llama(), left)
    yield "mistral: later tokens changed", lambda: leak(mistral(), every)
    yield "bert decoder: later tokens changed", lambda: leak(bert(is_decoder=True), every)
    yield "llama: KV cache against none", lambda: with_cache(llama(), left)
    yield "mistral: KV cache against none", lambda: with_cache(mistral(), every)
    yield "llama: padded batch against each row alone", alone
    yield "llama: generate with and without cache, tokens that differ", recomputed


def main() -> None:
    register()
    print(
        f"transformers {hf.__version__}, torch {torch.__version__}; largest absolute difference of outputs, float32\n"
    )
    print(f"| {CHECK} against eager | |\n|---|---|")
    for situation, measure in against_eager():
        print(f"| {situation} | {measure():.1e} |")
    columns = {name: dict(by_itself(name)) for name in NAMES}
    print("\n| against itself | " + " | ".join(NAMES) + " |\n|---|" + "---|" * len(NAMES))
    for situation in columns[CHECK]:
        print(f"| {situation} | " + " | ".join(f"{columns[name][situation]():.1e}" for name in NAMES) + " |")


if __name__ == "__main__":
    main()
