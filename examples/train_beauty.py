"""Trains a small OneRec-V2 on Amazon Beauty (5-core) and writes a checkpoint directory.

Protocol: leave-one-out. A user's last item is the test target, the one before it the validation target; every
earlier item but the first is a training target with the items before it as history. Evaluation ranks the whole
catalogue by constrained beam search, the user's own history excluded.

    python examples/train_beauty.py --data beauty.npz --output runs/dense --preset dense --evaluate-test

A run that was interrupted continues from its last saved epoch when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from onerec_engine.config import OneRecV2Config, Pathway
from onerec_engine.reference import OneRecV2, load_model, save_checkpoint
from onerec_engine.reference.training import balance_experts, decay_groups, init_weights, sequence_loss

if TYPE_CHECKING:  # mypy sees this folder as a package, Python as where the script lies
    from examples.beauty import Augmentation, IntArray, Sequences, evaluate, make_context, send
else:
    from beauty import Augmentation, IntArray, Sequences, evaluate, make_context, send

T = TypeVar("T")


def progress(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """A progress bar on a terminal where tqdm is installed, else the items as they are."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, total=total, desc=label, leave=False, disable=None)
    return bar


def make_config(args: argparse.Namespace, codebooks: tuple[int, ...]) -> OneRecV2Config:
    """The model that the flags describe."""
    moe: dict[str, Any] = {}
    if args.preset == "moe":
        moe = {
            "n_routed_experts": args.experts,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": args.expert_size,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": args.routed_scaling_factor,
        }
    return OneRecV2Config(
        codebook_sizes=codebooks,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // args.head_dim,
        head_dim=args.head_dim,
        intermediate_size=args.intermediate_size,
        embed_dim=args.embed_dim,
        num_context_kv_layers=args.kv_layers,
        context_kv_split=args.kv_split,
        qk_norm=args.qk_norm,
        pathways=(Pathway(name="history", kind="items", max_tokens=args.history, position_embedding="recency"),),
        **moe,
    )


class Trainer:
    """One training run and its state."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Reads the data, makes the model, and continues from a saved epoch if there is one."""
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(wanted if args.device == "auto" else args.device)
        self.args = args
        self.data = Sequences.load(Path(args.data), args.semantic_ids, self.device)
        sizes = tuple(int(v) + 1 for v in self.data.semantic_ids.max(0))
        self.config = make_config(args, tuple(max(256, v) for v in sizes))
        torch.manual_seed(args.seed)
        self.rng = np.random.default_rng(args.seed)
        self.model = OneRecV2(self.config)
        init_weights(self.model, args.seed, args.embedding_std)
        self.model.to(self.device)
        self.model.set_dropout(args.dropout, args.context_dropout)
        moving_average: Callable[[float], Any] = get_ema_multi_avg_fn
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(args.ema))
        groups = decay_groups(self.model, args.weight_decay)
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, args.beta2), fused=cuda)
        self.first, self.target = self.data.training_targets()
        self.weights = self._example_weights()
        self.steps_per_epoch = math.ceil(len(self.target) / args.batch_size)
        self.step = self.epoch = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_metric = -1.0
        users = np.random.default_rng(1).permutation(len(self.data.starts) - 1)
        self.validation_users = np.sort(users[: args.validation_users])
        self._resume()

    def _example_weights(self) -> Tensor:
        """Weights of mean 1; --user-balance moves weight from long to short histories."""
        _, inverse, counts = np.unique(self.first, return_inverse=True, return_counts=True)
        weight = counts[inverse] ** -float(self.args.user_balance)
        return torch.from_numpy((weight / weight.mean()).astype(np.float32)).to(self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.device.type == "cuda" and not self.args.fp32:
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _learning_rate(self, elapsed: float) -> float:
        progress = self.step / (self.args.epochs * self.steps_per_epoch)
        if self.args.budget_minutes:
            progress = max(progress, elapsed / (60.0 * self.args.budget_minutes))
        warm = min(1.0, (self.step + 1) / self.args.warmup_steps)
        floor = self.args.final_lr
        return float(self.args.lr * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))))

    def _batches(self) -> Iterator[IntArray]:
        order = self.rng.permutation(len(self.target))
        for at in range(0, len(order), self.args.batch_size):
            yield order[at : at + self.args.batch_size]

    def train_epoch(self) -> float:
        """One pass over all training targets; returns the mean loss."""
        args = self.args
        self.model.train()
        augment = Augmentation(args.token_drop, args.truncate, args.jitter, self.rng)
        losses = []
        begun = time.monotonic()
        for batch in progress(self._batches(), self.steps_per_epoch, f"epoch {self.epoch + 1}/{args.epochs}"):
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(self.seconds + time.monotonic() - begun)
            context = make_context(self.data, self.first[batch], self.target[batch], args.history, augment)
            goal = self.data.device_ids[send(self.data.items[self.target[batch]], self.device)]
            weights = self.weights[send(batch, self.device)]
            with self._autocast():
                logits = self.model(context, goal)
            loss = sequence_loss(logits, goal, label_smoothing=args.label_smoothing, weights=weights)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
            self.optimizer.step()
            if self.config.n_routed_experts:
                balance_experts(self.model, args.balance_rate)
            self.average.update_parameters(self.model)
            losses.append(loss.detach())
            self.step += 1
            if args.max_steps and self.step >= args.max_steps:
                break
        self.epoch += 1
        mean = float(torch.stack(losses).mean())
        self.seconds += time.monotonic() - begun
        return mean

    def averaged(self) -> OneRecV2:
        """The model with averaged weights, in evaluation mode."""
        module = self.average.module
        assert isinstance(module, OneRecV2)
        return module.eval()

    def validate(self, loss: float) -> None:
        """Scores the averaged weights on the validation items and keeps the best."""
        args = self.args
        begun = time.monotonic()
        with self._autocast():
            metrics = evaluate(
                self.averaged(), self.data, self.validation_users, 2, args.history, args.validation_beam, args.chunk
            )
        self.seconds += time.monotonic() - begun
        row = {"epoch": self.epoch, "loss": loss, "seconds": self.seconds, **metrics}
        self.history.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if metrics["R@10"] + metrics["N@10"] > self.best_metric:
            self.best_metric = metrics["R@10"] + metrics["N@10"]
            self.best = {k: v.detach().cpu().clone() for k, v in self.averaged().state_dict().items()}

    @property
    def finished(self) -> bool:
        """Whether the epochs, steps or minutes asked for are used up."""
        args = self.args
        late = args.budget_minutes and self.seconds >= 60.0 * args.budget_minutes
        return bool(self.epoch >= args.epochs or late or (args.max_steps and self.step >= args.max_steps))

    def save(self) -> None:
        """Saves everything needed to continue, atomically."""
        path = Path(self.args.output) / "state.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_metric": self.best_metric,
            "history": self.history,
            "counters": [self.step, self.epoch, self.seconds],
            "rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def _resume(self) -> None:
        path = Path(self.args.output) / "state.pt"
        if self.args.restart or not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_metric, self.history = state["best"], state["best_metric"], state["history"]
        self.step, self.epoch, self.seconds = state["counters"]
        self.rng.bit_generator.state = json.loads(state["rng"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        print(f"continuing after epoch {self.epoch}", file=sys.stderr)

    def run(self) -> None:
        """Trains to the end, validating and saving on the way, then writes the checkpoint."""
        args = self.args
        while not self.finished:
            loss = self.train_epoch()
            if self.epoch % args.validate_every == 0 or self.finished:
                self.validate(loss)
            if self.epoch % args.save_every == 0 or self.finished:
                self.save()
        if not self.best:
            self.validate(math.nan)
        output = Path(args.output)
        ids = np.arange(len(self.data.semantic_ids))
        save_checkpoint(output, self.config, self.best, ids, self.data.semantic_ids.astype(np.uint16), torch.bfloat16)
        report: dict[str, Any] = {
            "command": shlex.join(sys.argv),
            "seed": args.seed,
            "epochs": self.epoch,
            "train_seconds": self.seconds,
            "parameters": sum(v.numel() for v in self.best.values()),
            "arguments": vars(args),
            "validation_users": len(self.validation_users),
            "validation": self.history,
        }
        if args.evaluate_test:
            model = load_model(output).to(self.device)
            users = np.arange(len(self.data.starts) - 1)
            for name, from_end in (("validation_all_users", 2), ("test", 1)):
                begun = time.monotonic()
                metrics = evaluate(model, self.data, users, from_end, args.history, args.test_beam, args.chunk)
                report[name] = {"users": len(users), "beam": args.test_beam, **metrics}
                report[f"{name}_seconds"] = time.monotonic() - begun
                print(name, json.dumps(report[name]), flush=True)
        (output / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="beauty.npz")
    add("--output", required=True, help="checkpoint directory")
    add("--preset", choices=("dense", "moe"), default="dense")
    add("--semantic-ids", default="sid_cf_rqkmeans3u", help="which array of the data holds the semantic ids")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--fp32", action="store_true", help="no BF16 autocast on a GPU")
    add("--seed", type=int, default=0)
    add("--restart", action="store_true", help="ignore a saved state")
    add("--evaluate-test", action="store_true", help="score the written checkpoint on all users")
    sizes = {"hidden_size": 256, "layers": 4, "head_dim": 64, "intermediate_size": 768, "embed_dim": 64}
    sizes |= {"kv_layers": 4, "kv_split": 1, "history": 30, "experts": 8, "expert_size": 128}
    counts = {"epochs": 50, "batch_size": 1024, "max_steps": 0, "warmup_steps": 500, "validate_every": 4}
    counts |= {"save_every": 1, "validation_users": 8192, "validation_beam": 32, "test_beam": 64, "chunk": 1024}
    rates = {"lr": 1.5e-3, "final_lr": 0.02, "beta2": 0.98, "weight_decay": 0.05, "clip": 1.0, "ema": 0.999}
    rates |= {"dropout": 0.3, "context_dropout": 0.3, "label_smoothing": 0.05, "embedding_std": 0.1}
    rates |= {"token_drop": 0.2, "truncate": 0.0, "jitter": 0.0, "user_balance": 0.0}
    rates |= {"balance_rate": 1e-3, "routed_scaling_factor": 1.0, "budget_minutes": 0.0}
    for name, value in (sizes | counts | rates).items():
        add("--" + name.replace("_", "-"), type=type(value), default=value, help=f"default {value}")
    add("--qk-norm", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Trains and reports."""
    Trainer(parse_args()).run()


if __name__ == "__main__":
    main()
