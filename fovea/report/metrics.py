"""From groups and batches to flat numbers named `family/name`, the glossary that explains each, and intervals for accuracies.

This file reads tensors through their methods only and imports no torch.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fovea.types import Episode, Group

if TYPE_CHECKING:
    from fovea.batch import Batch

GLOSSARY: dict[str, str] = {
    "reward/mean": "Mean score of the scored samples: the number that training raises.",
    "reward/std": "Standard deviation of the scores over all samples of the step.",
    "reward/unscored_frac": "Fraction of samples that the verifier could not score; they are left out, never counted as zero.",
    "reward/<part>": "Mean of one named part of the reward. A total that rises through its format part alone is not learning the task.",
    "accuracy/mean": "Fraction of scored samples that are correct, over sources that have a notion of correct.",
    "accuracy/<source>": "Fraction of correct samples of one data source.",
    "length/mean_tokens": "Mean number of action units (tokens) that the policy chose per episode.",
    "length/max_tokens": "Longest episode of the step, in action units.",
    "length/cut_frac": "Fraction of episodes that were cut by the length limit. Above a few percent: raise max_new_tokens.",
    "length/tokens": "Action units generated in the step (read, where all answers are given).",
    "length/image_tokens": "Tokens of the answers that stand for pictures. The policy gives them no probability: expected 0.",
    "length/episodes": "Episodes generated in the step, baselines included.",
    "length/lost": "Running episodes that could not be taken up again, because their simulator did not repeat itself.",
    "length/mean_turns": "Mean number of turns per episode.",
    "group/degenerate_frac": "Fraction of groups whose scores are all equal: they give group-relative methods no gradient.",
    "group/solved_frac": "Fraction of groups in which every sample is correct: too easy.",
    "group/failed_frac": "Fraction of groups in which no sample is correct: too hard.",
    "group/rounds": "Rollouts drawn until enough groups were admitted (dynamic sampling).",
    "group/admitted_frac": "Fraction of generated groups that the gate let through to training.",
    "adv/mean": "Mean advantage over trained units; near zero for centred methods.",
    "adv/std": "Standard deviation of the advantage over trained units.",
    "adv/zero_frac": "Fraction of trained units whose advantage is zero, so they do not train.",
    "eval/accuracy": "Held-out accuracy, mean over sources. Training never sees these tasks.",
    "eval/accuracy_low": "Lower end of the 95 % interval of the held-out accuracy.",
    "eval/accuracy_high": "Upper end of the 95 % interval of the held-out accuracy.",
    "eval/accuracy/<source>": "Held-out accuracy of one data source.",
    "eval/return": "Mean return of greedy episodes from held-out starts of a simulator, or reward of a denoiser's held-out samples.",
    "eval/return_low": "Lower end of the 95 % bootstrap interval of the held-out return.",
    "eval/return_high": "Upper end of the 95 % bootstrap interval of the held-out return.",
    "eval/return/<source>": "Mean return of greedy episodes in one simulator.",
    "eval/n": "Number of held-out answers behind the accuracy.",
    "eval/n/<source>": "Number of held-out answers of one data source behind its accuracy.",
    "eval/<name>": "A number measured on held-out tasks.",
    "loss/total": "The optimised loss. Loss is 0 on-policy by construction: read reward and gradient norm instead.",
    "loss/policy": "The surrogate part of the loss, 0 on-policy by construction for centred advantages.",
    "loss/kl": "The KL penalty to the reference inside the loss.",
    "loss/entropy": "The entropy bonus inside the loss, negative.",
    "loss/value": "The value head's part of the loss.",
    "loss/perception": "PAPO's term: less the distance between readings of the answers with the picture and with a masked one.",
    "loss/entropy_own": "A term that keeps the entropy of the sampled answers down (PAPO, VPPO).",
    "loss/entropy_masked": "The same for the reading with masked pictures (PAPO).",
    "perception/kl": "How much a token depends on the picture: k3 of the KL to the reading with masked pictures, in nats, at most 10.",
    "perception/gap": "Log-probability of the answers' tokens with the picture less that with a masked one, mean over tokens, in nats.",
    "perception/kept": "Part of the tokens that have a policy gradient (VPPO).",
    "loss/nll": "The negative log-likelihood part of the loss.",
    "loss/critic": "The critics' loss, summed over critics.",
    "loss/reward": "How badly a world model foresees rewards: half the mean squared error.",
    "loss/drawing": "How badly a decoder draws what was seen: half the squared error, summed over a picture.",
    "model/kl": "Nats that flow into a world model's latent at each step: KL of posterior and prior.",
    "model/beta": "Multiplier of the bound on `model/kl` (RePo); it grows while the bound is broken.",
    "align/nats": "Nats that the judge's code keeps of an embedding (alignment); held near the method's bound.",
    "align/ratio": "Mean weight of source embeddings (alignment); its dual holds it at 1.",
    "align/dual": "Multiplier of that mean; it rises while the mean is above 1 and may be negative.",
    "loss/judge": "How badly source and target are told apart (alignment).",
    "loss/encoder": "How badly target embeddings pass for those of the source (alignment).",
    "loss/calibration": "Half the mean squared distance of embeddings of the same state in source and target (alignment); 0 without pairs.",
    "loss/actor": "The policy's loss: less the value of what it would do.",
    "loss/grasp": "The gripper's critic's loss (HIL-SERL).",
    "loss/imitation": "Mean squared distance between what the policy would do and what was shown (HG-DAgger).",
    "loss/<name>": "One term of the loss.",
    "policy/entropy": "Mean entropy in nats, exact or estimated from the samples. A fast fall to zero means that exploration has ended.",
    "policy/kl": "KL estimate in nats per unit between the new and the sampling policy: how far one step moved.",
    "policy/kl_ref": "KL estimate in nats per unit to the frozen reference: how far training has moved since the start.",
    "policy/clip_frac": "Fraction of trained units whose ratio the surrogate clipped. Zero on the first update of a rollout.",
    "policy/clip_low_frac": "Fraction of trained units clipped at the lower bound.",
    "policy/clip_high_frac": "Fraction of trained units clipped at the upper bound.",
    "policy/ratio_mean": "Mean importance ratio of new to sampling policy; 1 on-policy.",
    "policy/ratio_max": "Largest importance ratio; large values mean stale or mismatched samples.",
    "policy/truncation_nats": "Mean gap between the log-prob after top-p/top-k and before; 0 when nothing was truncated.",
    "policy/staleness": "Mean age of the trained units, in policy versions.",
    "mismatch/mean_nats": "Mean |log-prob of the remote sampler minus the trainer's own| on the same weights; 16 bits give up to 0.02.",
    "mismatch/max_nats": "Largest such difference of the step. A few nats on rare tokens are usual in 16 bits.",
    "mismatch/kl": "KL estimate in nats per unit of the sampler from the trainer; above 0.01 look for other weights, templates or images.",
    "mismatch/ess": "Effective share of the samples under importance weights, 1 without mismatch; below 0.9 most steps are noise.",
    "policy/nll": "Mean negative log-probability in nats of the given answers: what supervised training lowers.",
    "policy/preference_accuracy": "Fraction of pairs whose chosen answer gained more probability than its rejected one.",
    "policy/margin": "Mean implicit reward of chosen minus rejected answers.",
    "policy/label_frac": "Fraction of groups whose given answer trains; the others do as well without it (ViSurf).",
    "policy/implied_reward": "Mean reward that the log-ratio to the reference stands for, up to a constant of the prompt (PRDP).",
    "policy/temperature": "Weight of the entropy against the return (SAC).",
    "policy/exploration": "Noise or share of random actions while exploring (TD3, DQN).",
    "policy/intervened": "Share of the environment steps in which somebody else acted in the policy's place.",
    "policy/<name>": "A number that the method reports about its surrogate; see the method's page.",
    "value/mean": "Mean value that the value head predicts.",
    "value/return_mean": "Mean return that the value head should predict.",
    "value/target": "Mean of what the critics should predict.",
    "value/reward": "Mean reward of the batch, less the share of its steps after which somebody took over (RLIF).",
    "value/grasp_target": "Mean of what the gripper's critic should predict.",
    "value/error": "Mean squared error of the value head against the returns.",
    "value/<name>": "A number that the method reports about its value head.",
    "optim/grad_norm": "Norm of the gradient before clipping. Zero means nothing was learned this step; a jump warns of instability.",
    "optim/learning_rate": "Learning rate of the step.",
    "optim/updates": "Updates on windows of the replay in the step.",
    "optim/<name>": "A number that the optimizer reports.",
    "batch/rows": "Trained rows (segments) of the step.",
    "batch/tokens": "Trained action units of the step.",
    "batch/<name>": "A count of what the step trained on.",
    "services/utilisation": "Share of the time in which the environments had an episode.",
    "services/stale_frac": "Share of the episodes that were dropped because the weights that played them are too old.",
    "services/mixed_frac": "Share of the trained episodes that were played with more than one version of the weights.",
    "services/group_size": "Mean number of episodes of a task.",
    "services/<name>": "A number about the services that play episodes beside the trainer.",
    "ray/workers_lost": "Rollout workers that have ended in this process's time, each of which another one replaced.",
    "ray/environment_workers_lost": "The same of environment workers.",
    "ray/questions_again": "Turns that were asked for again, because the worker that drew them was lost.",
    "ray/episodes_again": "Episodes that were begun anew, because the worker that held their environment was lost.",
    "replay/frames": "Frames in the replay that windows are drawn from.",
    "replay/shown": "Frames of demonstrations and of what was done in the policy's place.",
    "replay/steps": "Environment steps so far.",
    "replay/<name>": "A number about the replay.",
    "time/wall_s": "Seconds since the run began, earlier processes of a resumed run included.",
    "time/step_s": "Seconds of the whole step.",
    "time/generate_s": "Seconds spent on generating.",
    "time/score_s": "Seconds spent waiting for verifiers after generation ended.",
    "time/prepare_s": "Seconds spent on collating, reference log-probs and credit.",
    "time/update_s": "Seconds spent on forward, backward and optimizer.",
    "time/wait_s": "Seconds of standing still for other processes, for servers that were away, or while weights went to a server; "
    "counted in no other phase, and absent where there is nobody to wait for.",
    "time/eval_s": "Seconds spent on held-out evaluation.",
    "time/save_s": "Seconds spent on checkpoints since the step before.",
    "time/<name>": "Seconds spent in one phase of the step.",
    "speed/tokens_per_s": "Generated action units per second of generation.",
    "speed/episodes_per_s": "Episodes per second of the whole step.",
    "speed/<name>": "A rate.",
    "memory/peak_mb": "Peak resident memory of the process so far, in megabytes.",
    "memory/device_peak_mb": "Peak memory that tensors held on the GPU so far, in megabytes.",
    "memory/<name>": "Memory in megabytes.",
}
"""One line for each metric; a name in angle brackets stands for any name of that family."""

NOISE = 1e-7
"""Anything smaller in a float32 metric is rounding, shown as zero (the KL of an on-policy step)."""

RESERVED = {"mean", "std", "unscored_frac"}


def explain(name: str) -> str:
    """The glossary line of a metric, its family's line where it has no own, or "" for an unknown family."""
    if name in GLOSSARY:
        return GLOSSARY[name]
    stem = name
    while "/" in stem:
        stem = stem.rpartition("/")[0]
        for key, text in GLOSSARY.items():
            if key.startswith(stem + "/<"):
                return text
    return ""


# -- numbers of one step ------------------------------------------------------------------------------------------------------


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, accuracies, lengths and group health of a rollout; baselines and given answers are left out."""
    drawn = [e for g in groups for e in g.episodes if e.role == "sample"]
    scored = [e for g in groups for e in g.samples]
    if not drawn:
        return {}
    values = [e.score.value for e in scored if e.score]
    out = {
        "reward/mean": _mean(values),
        "reward/std": statistics.pstdev(values) if values else math.nan,
        "reward/unscored_frac": 1 - len(scored) / len(drawn),
        **_parts(scored),
        **_accuracies(scored),
        "length/mean_tokens": _mean([float(e.length) for e in drawn]),
        "length/max_tokens": float(max(e.length for e in drawn)),
        "length/cut_frac": _mean([float(e.stop == "length") for e in drawn]),
        "length/mean_turns": _mean([float(len(e.turns)) for e in drawn]),
    }
    several = [g.samples for g in groups if len(g.samples) > 1]
    judged = [s for s in several if all(e.score and e.score.correct is not None for e in s)]
    if several:
        out["group/degenerate_frac"] = _mean([float(len({e.score.value for e in s if e.score}) == 1) for s in several])
    if judged:
        out["group/solved_frac"] = _mean([float(all(e.score and e.score.correct for e in s)) for s in judged])
        out["group/failed_frac"] = _mean([float(not any(e.score and e.score.correct for e in s)) for s in judged])
    return out


def batch_metrics(batch: Batch) -> dict[str, float]:
    """Size, advantage, truncation and age of a collated batch."""
    chosen_BT = batch.mask_BT > 0
    sampled_BT = chosen_BT & ~batch.given_B[:, None] if not bool(batch.given_B.all()) else chosen_BT
    gap = (batch.logp_old_BT - batch.logp_behaviour_BT)[sampled_BT].double()
    age = (batch.context.policy_version - batch.version_BT)[chosen_BT].double()
    out = {
        "batch/rows": float((batch.mask_BT.sum(1) > 0).sum()),
        "batch/tokens": float(chosen_BT.sum()),
        "policy/staleness": float(age.mean()),
        **(mismatch(gap) if batch.remote else {"policy/truncation_nats": float(gap.abs().mean())}),
    }
    if batch.adv_BT is not None:
        adv = batch.adv_BT[chosen_BT].double()
        out |= {
            "adv/mean": float(adv.mean()),
            "adv/std": float(adv.std(correction=0)),
            "adv/zero_frac": float((adv == 0).double().mean()),
        }
    return out


def mismatch(gap: Any) -> dict[str, float]:
    """How far a sampler is from the trainer, from `gap` (N,) = log π_trainer − log π_sampler of the chosen units, in nats.

    kl is the k3 estimate of KL(sampler ‖ trainer), mean of exp(gap) − 1 − gap; ess is (Σ w)² / (N Σ w²) with w = exp(gap).
    """
    weight = gap.clamp(-20, 20).exp()
    return {
        "mismatch/mean_nats": float(gap.abs().mean()),
        "mismatch/max_nats": float(gap.abs().max()),
        "mismatch/kl": float((weight - 1 - gap).mean()),
        "mismatch/ess": float(weight.sum() ** 2 / (len(weight) * (weight**2).sum())),
    }


def time_metrics(seconds: Mapping[str, float], tokens: float = 0.0, episodes: float = 0.0) -> dict[str, float]:
    """Phases in seconds ("generate", "score", "prepare", "update", "step", ...) with the rates they give."""
    out = {f"time/{name}_s": float(s) for name, s in seconds.items()}
    if tokens and seconds.get("generate"):
        out["speed/tokens_per_s"] = tokens / seconds["generate"]
    if episodes and seconds.get("step"):
        out["speed/episodes_per_s"] = episodes / seconds["step"]
    return out


def memory_metrics() -> dict[str, float]:
    """Peak memory of this process so far, in megabytes of 10^6 bytes; empty where the system does not tell."""
    try:
        import resource
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    out = {"memory/peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        out["memory/device_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return out


def _parts(scored: Sequence[Episode]) -> dict[str, float]:
    names = sorted({k for e in scored if e.score for k in e.score.parts})
    return {
        f"reward/{n}_part" if n in RESERVED else f"reward/{n}": _mean([e.score.parts[n] for e in scored if e.score and n in e.score.parts])
        for n in names
    }


def _accuracies(scored: Sequence[Episode]) -> dict[str, float]:
    """The overall accuracy and that of each source; a source called "mean" gets a suffix."""
    out = {}
    for source in ("", *sorted({e.task.source for e in scored})):
        correct = _correct([e for e in scored if source in ("", e.task.source)])
        name = f"accuracy/{source or 'mean'}"
        if correct:
            out[f"{name}_source" if source and name in GLOSSARY else name] = _mean([float(c) for c in correct])
    return out


def _correct(scored: Iterable[Episode]) -> list[bool]:
    return [e.score.correct for e in scored if e.score and e.score.correct is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def judged(metrics: Mapping[str, float]) -> bool:
    """Whether a step was evaluated."""
    return "eval/accuracy" in metrics or "eval/return" in metrics


def headline(metrics: Mapping[str, float]) -> float:
    """The held-out number that runs are judged by: accuracy, or the return of a simulator.

    Raises:
      KeyError: neither was measured.
    """
    return metrics["eval/accuracy"] if "eval/accuracy" in metrics else metrics["eval/return"]


# -- intervals ----------------------------------------------------------------------------------------------------------------


def interval(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson, 1927).

    centre = (p + z²/2n) / (1 + z²/n);  half = z/(1 + z²/n) · sqrt(p(1−p)/n + z²/4n²).

    Args:
      successes: how many of the n were correct.
      level: coverage, 0.95 by default (z = 1.96).
    Returns:
      (low, high) within [0, 1]; (0, 1) for n = 0; NaN for scores that are no fraction of n.
    """
    if n <= 0:
        return 0.0, 1.0
    if not 0 <= successes <= n:
        return math.nan, math.nan
    z, p = statistics.NormalDist().inv_cdf(0.5 + level / 2), successes / n
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean: for rewards, and for accuracies by task or by seed.

    Args:
      values: independent units, one number each (the mean of a task's answers, the result of a seed).
    Returns:
      (low, high); (nan, nan) without values.
    """
    if not values:
        return math.nan, math.nan
    rng, n = random.Random(seed), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    low, high = (1 - level) / 2, (1 + level) / 2
    return means[math.floor(low * (draws - 1))], means[math.ceil(high * (draws - 1))]


def family(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The free names of a family without their prefix: `family(row, "reward")` gives the parts, "accuracy" the sources."""
    prefix += "/"
    return {name[len(prefix) :]: value for name, value in metrics.items() if name.startswith(prefix) and name not in GLOSSARY}
