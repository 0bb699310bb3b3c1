"""What somebody does with exported folders who has only torch and transformers; started by `test_exported_folders.py`.

python -I export_client.py QUESTIONS.json ANSWERS.safetensors: for every folder, logits, samples, a likelihood and token ids.
The sampler and the likelihood have the interface of the scripts that LLaDA and dLLM publish: a model whose output has `logits`,
and a `mask_id`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer


@torch.no_grad()
def generate(model, prompt, steps, gen_length, block_length, temperature=0.0, cfg_scale=0.0, mask_id=None):
    """Semi-autoregressive blocks from left to right; in a block the most confident tokens first. [b, s] -> [b, s + gen_length]."""
    length = prompt.shape[1]
    x = torch.full((prompt.shape[0], length + gen_length), mask_id, dtype=torch.long, device=model.device)
    x[:, :length] = prompt
    given = x != mask_id
    steps_per_block = steps // (gen_length // block_length)
    for end in range(length + block_length, length + gen_length + 1, block_length):
        for left in range(steps_per_block, 0, -1):
            masked = x == mask_id
            if cfg_scale > 0:
                without = torch.where(given, mask_id, x)
                logits, unconditional = model(torch.cat([x, without])).logits.chunk(2)
                logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
            else:
                logits = model(x).logits
            assert not logits.isnan().any()
            drawn = logits.double()
            if temperature > 0:
                drawn = drawn.exp() / (-torch.rand_like(drawn).log()) ** temperature
            best = torch.where(masked, drawn.argmax(dim=-1), x)
            confidence = logits.double().softmax(dim=-1).gather(-1, best[..., None])[..., 0]
            confidence = confidence.masked_fill(~masked, -torch.inf)
            confidence[:, end:] = -torch.inf
            for row in range(len(x)):
                count = -(-int(masked[row, :end].sum()) // left)
                chosen = confidence[row].topk(count).indices
                x[row, chosen] = best[row, chosen]
    return x


@torch.no_grad()
def log_likelihood(model, prompt, answer, mc_num, mask_id):
    """Monte-Carlo estimate of log p(answer | prompt): k of the answer's tokens are masked, k uniform, weighted by n / k."""
    row, total = torch.cat([prompt, answer])[None], 0.0
    for number in range(mc_num):
        count = 1 + number % len(answer)
        masked = torch.zeros_like(row, dtype=torch.bool)
        masked[0, len(prompt) + torch.randperm(len(answer))[:count]] = True
        logits = model(torch.where(masked, mask_id, row)).logits
        total -= F.cross_entropy(logits[masked], row[masked], reduction="sum").item() * len(answer) / count
    return total / mc_num


def answers_of_model(folder, question):
    """Tensors by name."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokens, mask_id = question["tokens"], model.config.mask_id
    assert model.config.mask_token_id == mask_id and model.dtype == torch.float32
    with torch.no_grad():
        answers = {f"logits {s}": model(tokens, loops=s).logits for s in (1, 3, 6)}
        answers["default"] = model(tokens).logits
        answers["default loops"] = model(tokens).loops
        for i, tolerance in enumerate(question.get("tolerances", [])):
            output = model(tokens, loops=8, loop_tolerance=float(tolerance))
            answers |= {f"adaptive {i}": output.logits, f"adaptive loops {i}": output.loops}
            alone = [model(row[None], loops=8, loop_tolerance=float(tolerance)).logits for row in tokens]
            answers[f"adaptive alone {i}"] = torch.cat(alone)
        padded = torch.cat(
            [torch.zeros(len(tokens), 3, dtype=torch.long), tokens, torch.ones(len(tokens), 2, dtype=torch.long)], 1
        )
        attended = F.pad(torch.ones_like(tokens), (3, 2))
        answers["padded"] = model(padded, attention_mask=attended, loops=3).logits[:, 3:-2]
        square = attended[:, None, :].bool().expand(-1, padded.shape[1], -1)
        answers["padded square"] = model(padded, square, 3).logits[:, 3:-2]
        answers["tuple"] = model(tokens, loops=3, return_dict=False)[0]
        half = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
        answers["bf16"] = half(tokens, loops=3).logits.float()
    prompt, settings = question["prompt"], {"gen_length": 12, "block_length": 6, "mask_id": mask_id}
    answers["greedy"] = generate(model, prompt, steps=4, **settings)
    answers["drawn"] = generate(model, prompt, steps=6, temperature=1.0, **settings)
    answers["guided"] = generate(model, prompt, steps=4, temperature=0.5, cfg_scale=1.5, **settings)
    one = [
        log_likelihood(model, prompt[0], prompt[1][:1], 1, mask_id),
        log_likelihood(model, prompt[0], prompt[1], 16, mask_id),
    ]
    return answers | {"likelihood": torch.tensor(one)}


def answers_about_text(folder, texts):
    """Ids of every text, alone and in a batch, and the special ids; the error where a package is missing."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    except ImportError as error:
        return {"error": str(error)}
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert tokenizer(texts)["input_ids"] == ids == [tokenizer.encode(text) for text in texts]
    assert set(tokenizer(texts[0])) == {"input_ids", "attention_mask"}
    special = [tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    decoded = [tokenizer.decode(one) for one in ids]
    named = tokenizer(tokenizer.mask_token, split_special_tokens=False)["input_ids"]
    return {"ids": ids, "special": special, "decoded": decoded, "named": named, "size": len(tokenizer)}


def saved_again(folder, copy):
    """What transformers itself saves and loads has the same weights; the configuration knows the code."""
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(copy)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True).save_pretrained(copy)
    again = AutoModel.from_pretrained(copy, trust_remote_code=True)
    assert AutoConfig.from_pretrained(copy, trust_remote_code=True).mask_id == model.config.mask_id
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    return AutoTokenizer.from_pretrained(copy, trust_remote_code=True)("[MASK] a  b")["input_ids"]


def main(questions: Path, output: Path) -> None:
    """Answer for every folder of the questions."""
    torch.manual_seed(0)
    tensors, text = {}, {}
    for name, asked in json.loads(questions.read_text()).items():
        folder = asked["folder"]
        for key, value in answers_of_model(folder, load_file(asked["tensors"])).items():
            tensors[f"{name}/{key}"] = value.contiguous()
        if "texts" in asked:
            text[name] = answers_about_text(folder, asked["texts"])
            if "ids" in text[name]:
                text[name]["saved again"] = saved_again(folder, output.parent / f"{output.stem}-{name}")
    save_file(tensors, output)
    output.with_suffix(".json").write_text(json.dumps(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
