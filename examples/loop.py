"""Reinforcement learning of a model that sees, in one file: ask, answer, judge, compare, learn.

    python examples/loop.py --steps 30

This is GRPO without its options. A task shows a picture and asks a question. The model answers it G times; an answer that is better than
the other answers to the same question becomes more likely, a worse one less likely. The library's trainer does the same and adds what long
runs need: several turns, evaluation, checkpoints, a run page. The parts used here are the trainer's own.
"""

import argparse

import torch

import fovea
from fovea import Context, Episode, Group
from fovea.batch import collate
from fovea.math.advantages import grpo
from fovea.math.aggregate import aggregate
from fovea.math.ratios import token_ratio
from fovea.math.surrogates import ppo_clip
from fovea.tasks.worlds import World
from fovea.types import Segment, Turn
from fovea.verifiers import build


@torch.no_grad()
def answer(policy, tasks, group_size, limit):
    """`group_size` sampled answers to each task; the pictures and prompts are computed once per task."""
    prefixes = [policy.encode(t.prompt, t.images) for t in tasks]
    cohort, logits_RV = policy.prefill(prefixes, [[()] * group_size for _ in tasks], room=limit)
    rows = len(tasks) * group_size
    tokens, logps, alive = [[] for _ in range(rows)], [[] for _ in range(rows)], list(range(rows))
    while alive:
        logits_RV[:, list(policy.banned_ids)] = float("-inf")  # an answer never holds an image placeholder
        logp_RV = logits_RV.log_softmax(-1)
        token_R = torch.multinomial(logp_RV.exp(), 1)[:, 0]
        for r, token, logp in zip(alive, token_R.tolist(), logp_RV.gather(1, token_R[:, None])[:, 0].tolist(), strict=True):
            tokens[r].append(token)
            logps[r].append(logp)
        going = [i for i, r in enumerate(alive) if tokens[r][-1] not in policy.eos_ids and len(tokens[r]) < limit]
        alive = [alive[i] for i in going]
        if alive:
            cohort.keep(going)
            (logits_RV,) = policy.decode([cohort], [token_R[going]])
    episodes = [episode(policy, tasks[r // group_size], prefixes[r // group_size], tokens[r], logps[r], r) for r in range(rows)]
    return [Group(t, episodes[n * group_size : (n + 1) * group_size]) for n, t in enumerate(tasks)]


def episode(policy, task, prefix, tokens, logps, number):
    """One answer as the batch contract wants it: its tokens, how likely they were, and the text for the verifier."""
    T = len(tokens)
    segment = Segment(
        prefix=prefix,
        actions=torch.tensor(tokens),
        mask=torch.ones(T, dtype=torch.bool),
        logp_old=torch.tensor(logps),
        turn=torch.zeros(T, dtype=torch.long),
        version=torch.zeros(T, dtype=torch.long),
    )
    return Episode(id=str(number), task=task, segments=[segment], turns=[Turn(policy.decode_text(tokens))])


def judge(groups):
    """Each task names its own verifier."""
    for group in groups:
        scores = build(group.task.verifier, group.task.params).score(group, Context())
        for e, score in zip(group.episodes, scores, strict=True):
            e.score = score


def learn(policy, groups, optimizer, limit):
    """One optimizer step; the loss is −J averaged over the tokens of each answer, then over answers."""
    batch = collate(groups)
    adv_E = grpo(batch.score_E, batch.group_E, batch.ok_E)
    adv_B1 = batch.per_row(adv_E).float()
    logp_BT = policy.evaluate(batch, {"logp"})["logp"]
    ratio_BT = token_ratio(logp_BT - batch.logp_old_BT)
    loss = aggregate(-ppo_clip(ratio_BT, adv_B1), batch.mask_BT, batch.count(limit), "seq-mean-token-mean")
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return float(norm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=8, help="tasks per step")
    parser.add_argument("--group-size", type=int, default=8, help="answers to each task")
    parser.add_argument("--limit", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    policy, world = fovea.load_policy(args.model), World(seed=args.seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(args.steps):
        groups = answer(policy, [world[step * args.tasks + i] for i in range(args.tasks)], args.group_size, args.limit)
        judge(groups)
        norm = learn(policy, groups, optimizer, args.limit)
        scores = [e.score.value for g in groups for e in g.episodes if e.score.ok]
        length = sum(e.length for g in groups for e in g.episodes) / (args.tasks * args.group_size)
        print(f"step {step + 1:3}   reward {sum(scores) / len(scores):.3f}   tokens {length:5.1f}   gradient {norm:.2f}", flush=True)


if __name__ == "__main__":
    main()
