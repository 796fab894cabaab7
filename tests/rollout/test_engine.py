import asyncio
import threading

import pytest
import torch
from PIL import Image

from fovea.batch import collate
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.types import Context, Group, Observation, Score, Task, user
from tests.rollout.fake_policy import EOS, IMAGE, FakePolicy, random_logits, scripted


def ask(name, text=None, images=0):
    return Task(
        id=name, source="toy", prompt=user(text or name, images), images=tuple(Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(images))
    )


def tokens(groups):
    return [[s.actions.tolist() for s in e.segments] for g in groups for e in g.episodes]


def follow(seen, ids):
    """Append user text that depends on what was said."""
    return Observation(messages=user(f"{seen}{len(ids)}", 0), append=True)


async def chat(task, policy, env):
    action = await policy.act(Observation(messages=task.prompt, images=task.images))
    for k in range(2):
        action = await policy.act(follow(f"more{k}", action.token_ids))


@pytest.mark.parametrize("program", [None, chat])
@pytest.mark.parametrize("max_rows", [1, 3, 8, 64])
def test_results_do_not_depend_on_the_batch(program, max_rows):
    tasks = [ask(f"t{i}", "x" * (i + 1)) for i in range(5)]
    sampling = Sampling(max_new_tokens=12, top_p=0.95)
    kind = {} if program is None else {"program": program}
    first = Engine(FakePolicy(), max_rows=64, **kind).rollout(tasks, 4, sampling)
    again = Engine(FakePolicy(), max_rows=max_rows, **kind).rollout(tasks, 4, sampling)
    assert tokens(first) == tokens(again)
    assert len({tuple(map(tuple, t)) for t in tokens(first)}) > 15  # and the episodes of a group differ


def test_stored_logps_are_those_of_the_stored_sequence():
    groups = Engine(FakePolicy(), program=chat).rollout([ask("a"), ask("bb")], 3, Sampling(max_new_tokens=9, temperature=0.7, top_k=20))
    for group in groups:
        for episode in group.episodes:
            (segment,) = episode.segments
            sequence = list(segment.prefix.data)
            for t, token in enumerate(segment.actions.tolist()):
                if segment.mask[t]:
                    logits = random_logits(sequence) / 0.7
                    logits[IMAGE] = -torch.inf
                    assert segment.logp_old[t].item() == pytest.approx(torch.log_softmax(logits, 0)[token].item(), abs=1e-5)
                    head = logits.topk(20)
                    assert token in head.indices
                    assert segment.logp_behaviour[t].item() == pytest.approx((logits[token] - head.values.logsumexp(0)).item(), abs=1e-5)
                else:
                    assert segment.logp_old[t] == 0
                sequence.append(token)


def test_a_temperature_of_one_turn_leaves_logp_old_at_the_trainers():
    async def hot(task, policy, env):
        await policy.act(Observation(messages=task.prompt), temperature=3.0)

    (group,) = Engine(FakePolicy(), program=hot).rollout([ask("a")], 2, Sampling(max_new_tokens=6, temperature=0.5), members=("greedy",))
    for episode in group.episodes:
        (segment,) = episode.segments
        sequence = list(segment.prefix.data)
        for t, token in enumerate(segment.actions.tolist()):
            logits = random_logits(sequence)
            logits[IMAGE] = -torch.inf
            assert segment.logp_old[t].item() == pytest.approx(torch.log_softmax(logits / 0.5, 0)[token].item(), abs=1e-5)
            behaviour = 0.0 if episode.role == "greedy" else torch.log_softmax(logits / 3.0, 0)[token].item()
            assert segment.logp_behaviour[t].item() == pytest.approx(behaviour, abs=1e-5)
            sequence.append(token)


def test_seed_step_and_attempt_are_part_of_the_address():
    def run(seed=0, step=0, attempt=0):
        return tokens(
            Engine(FakePolicy(), seed=seed).rollout([ask("a")], 2, Sampling(max_new_tokens=8), Context(step=step), attempt=attempt)
        )

    assert run() == run()
    assert len({str(run()), str(run(seed=1)), str(run(step=1)), str(run(attempt=1))}) == 4


def test_every_turn_draws_anew():
    async def twice(task, policy, env):
        await policy.act(Observation(messages=task.prompt))
        await policy.act(Observation(messages=task.prompt))

    (group,) = Engine(FakePolicy(), program=twice).rollout([ask("a")], 2, Sampling(max_new_tokens=8, min_new_tokens=8))
    for episode in group.episodes:
        first, second = episode.segments
        assert first.prefix.key == second.prefix.key and first.actions.tolist() != second.actions.tolist()


def test_turns_with_settings_of_their_own_share_a_step():
    async def own(task, policy, env):
        n = 3 + len(task.id)
        await policy.act(Observation(messages=task.prompt), max_new_tokens=n, min_new_tokens=n, temperature=float(len(task.id)))

    tasks = [ask("a" * i) for i in range(1, 5)]
    together = Engine(FakePolicy(), program=own).rollout(tasks, 2)
    alone = Engine(FakePolicy(), program=own, max_rows=1).rollout(tasks, 2)
    assert tokens(together) == tokens(alone) and [len(t[0]) for t in tokens(together)] == [4, 4, 5, 5, 6, 6, 7, 7]
    assert not any(EOS in t[0] for t in tokens(together))


def test_a_task_that_comes_twice_is_answered_twice():
    first, second = Engine(FakePolicy()).rollout([ask("a"), ask("a")], 2, Sampling(max_new_tokens=8))
    assert tokens([first]) != tokens([second])
    assert len({e.id for g in (first, second) for e in g.episodes}) == 4


def test_banned_ids_never_appear_and_lengths_hold():
    def flat(sequence):
        logits = torch.zeros(260)
        logits[IMAGE] = 30
        return logits

    groups = Engine(FakePolicy(flat)).rollout([ask("a")], 16, Sampling(max_new_tokens=200, min_new_tokens=5))
    for episode in groups[0].episodes:
        ids = episode.segments[0].actions.tolist()
        assert IMAGE not in ids and EOS not in ids[:5]
        assert (ids[-1] == EOS) == (episode.stop == "eos") and (len(ids) == 200) == (episode.stop == "length") and EOS not in ids[:-1]


@pytest.mark.parametrize(
    ("answer", "stop", "text", "reason"),
    [
        ("<answer>3</answer> and more", ("</answer>",), "<answer>3</answer>", "stop"),
        ("née é! rest", ("é!",), "née é!", "stop"),
        ("no such thing", ("zzz",), "no such thing", "eos"),
        ("a stop", ("stop", "a "), "a ", "stop"),
    ],
)
def test_stop_strings_across_token_borders(answer, stop, text, reason):
    (group,) = Engine(FakePolicy(scripted({"q": answer}))).rollout([ask("q")], 1, Sampling(stop=stop, temperature=0))
    (episode,) = group.episodes
    assert (episode.text, episode.stop) == (text, reason)


def test_a_stop_string_of_the_turn_before_does_not_stop_the_next_turn():
    async def twice(task, policy, env):
        await policy.act(Observation(messages=task.prompt))
        await policy.act(Observation(messages=user("again", 0), append=True))

    policy = FakePolicy(scripted({"q": "one;", "again": "two;x"}))
    (group,) = Engine(policy, program=twice).rollout([ask("q")], 1, Sampling(stop=(";", "never said"), temperature=0))
    assert [t.text for t in group.episodes[0].turns] == ["one;", "two;"]


def test_appended_text_extends_the_segment_and_is_masked_out():
    async def twice(task, policy, env):
        await policy.act(Observation(messages=task.prompt))
        await policy.act(Observation(messages=user("next", 0), append=True))

    (group,) = Engine(FakePolicy(scripted({"q": "yes", "next": "no"})), program=twice).rollout([ask("q")], 1, Sampling(temperature=0))
    (segment,) = group.episodes[0].segments
    # the answer closes itself with EOS, so the appended text must not close it once more
    assert segment.actions.tolist() == [*b"yes", EOS, *b"\nnext|", *b"no", EOS]
    assert segment.mask.tolist() == [True] * 4 + [False] * 6 + [True] * 3
    assert segment.turn.tolist() == [0] * 4 + [1] * 9


def test_a_turn_cut_by_length_is_closed_by_the_appended_tokens():
    async def twice(task, policy, env):
        await policy.act(Observation(messages=task.prompt), max_new_tokens=2)
        await policy.act(Observation(messages=user("next", 0), append=True))

    (group,) = Engine(FakePolicy(scripted({"q": "yes", "next": "no"})), program=twice).rollout([ask("q")], 1, Sampling(temperature=0))
    assert group.episodes[0].segments[0].actions.tolist() == [*b"ye", EOS, *b"\nnext|", *b"no", EOS]
    assert [t.stop for t in group.episodes[0].turns] == ["length", "eos"]


def test_an_appended_image_opens_a_segment_that_holds_the_whole_history():
    async def look(task, policy, env):
        await policy.act(Observation(messages=task.prompt, images=task.images))
        await policy.act(Observation(messages=user("closer", 1), images=(Image.new("RGB", (2, 2)),), append=True))

    (group,) = Engine(FakePolicy(scripted({"q": "zoom", "closer": "7"})), program=look).rollout(
        [ask("q", images=1)], 1, Sampling(temperature=0)
    )
    first, second = group.episodes[0].segments
    assert bytes(t for t in second.prefix.data if t < 256) == b"\nq\nzoom\ncloser|"
    assert second.prefix.data.count(IMAGE) == 2 and first.prefix.key != second.prefix.key
    assert second.actions.tolist() == [*b"7", EOS] and second.turn.tolist() == [1, 1]


def test_an_answer_that_was_begun_stands_once_in_the_history():
    begun = {"role": "assistant", "content": [{"type": "text", "text": "so "}]}

    async def look(task, policy, env):
        await policy.act(Observation(messages=(*task.prompt, begun), images=task.images))
        await policy.act(Observation(messages=user("closer", 1), images=(Image.new("RGB", (2, 2)),), append=True))

    (group,) = Engine(FakePolicy(scripted({"so ": "zoom", "closer": "7"})), program=look).rollout(
        [ask("q", images=1)], 1, Sampling(temperature=0)
    )
    assert bytes(t for t in group.episodes[0].segments[1].prefix.data if t < 256) == b"\nq\nso zoom\ncloser|"


def test_a_replaced_history_opens_a_segment():
    async def trimmed(task, policy, env):
        await policy.act(Observation(messages=task.prompt))
        await policy.act(Observation(messages=user("fresh", 0)))

    (group,) = Engine(FakePolicy(scripted({"q": "a", "fresh": "b"})), program=trimmed).rollout([ask("q")], 2, Sampling(temperature=0))
    for episode in group.episodes:
        assert [bytes(s.prefix.data) for s in episode.segments] == [b"\nq|", b"\nfresh|"]


def test_the_prefix_of_a_group_is_encoded_and_prefilled_once():
    policy = FakePolicy()
    engine = Engine(policy, max_rows=8)
    engine.rollout([ask(f"t{i}", images=1) for i in range(6)], 4, Sampling(max_new_tokens=5), members=("greedy",))
    assert policy.counts["encode"] == 6
    assert sorted(key for call in policy.prefilled for key in call) == sorted({key for call in policy.prefilled for key in call})
    assert engine.counts["prefixes"] == 6 and engine.counts["episodes"] == 30


def test_greedy_members_are_greedy_and_give_no_rows():
    policy = FakePolicy()
    (group,) = Engine(policy).rollout([ask("a")], 2, Sampling(max_new_tokens=6, temperature=2.0), members=("greedy",))
    assert [e.role for e in group.episodes] == ["sample", "sample", "greedy"]
    ids = list(policy.encode(ask("a").prompt, ()).data)
    for token in group.episodes[2].segments[0].actions.tolist():
        logits = random_logits(ids)
        logits[IMAGE] = -torch.inf
        assert token == int(logits.argmax())
        ids.append(token)
    for e in group.episodes:
        e.score = Score(1.0)
    batch = collate([group])
    assert batch.B == 2 and batch.score_E.shape == (3,)
    alone = Engine(FakePolicy()).rollout([ask("a")], 2, Sampling(max_new_tokens=6, temperature=2.0))
    assert tokens(alone)[:2] == tokens([group])[:2]


def test_an_error_ends_its_episode_only():
    class Env:
        count = 0

        def __init__(self):
            Env.count += 1
            self.broken = Env.count == 2

        def reset(self, task, seed):
            return Observation(messages=task.prompt)

        def step(self, action):
            if self.broken:
                raise OSError("the disk is gone")
            return Observation(), 1.0, True, False, {}

    engine = Engine(FakePolicy(), environment=Env)
    (group,) = engine.rollout([ask("a")], 3, Sampling(max_new_tokens=4))
    assert [e.stop == "error" for e in group.episodes] == [False, True, False]
    bad = group.episodes[1]
    assert bad.error == "OSError: the disk is gone" and bad.score is not None and not bad.score.ok and "disk" in bad.score.reason
    assert engine.counts["errors"] == 1


def test_keyboard_interrupt_passes():
    class Env:
        def reset(self, task, seed):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(FakePolicy(), environment=Env).rollout([ask("a"), ask("b")], 2)


def test_an_error_of_the_policy_ends_the_rollout():
    def broken(sequence):
        if len(sequence) > 6:
            raise MemoryError("no memory left")
        return random_logits(sequence)

    with pytest.raises(MemoryError):
        Engine(FakePolicy(broken)).rollout([ask("a")], 2, Sampling(max_new_tokens=30, min_new_tokens=20))


def test_rewards_are_booked_per_turn_and_segments_know_a_cut():
    class Env:
        def reset(self, task, seed):
            self.n, self.seed = 0, seed
            return Observation(messages=user(f"s{seed}", 0))

        def step(self, action):
            self.n += 1
            return Observation(messages=user("go on", 0), append=self.n == 1), 0.5 * self.n, False, self.n == 3, {}

    (group,) = Engine(FakePolicy(), environment=Env).rollout([ask("a")], 2, Sampling(max_new_tokens=3))
    a, b = group.episodes
    assert [s.reward for s in a.segments] == [(0.5, 1.0), (1.5,)]
    assert [s.bootstrap for s in a.segments] == [False, True] and a.stop == "cut"
    assert [t.reward for t in a.turns] == [0.5, 1.0, 1.5]
    assert a.segments[0].prefix.key == b.segments[0].prefix.key  # the group shares its start
    for e in group.episodes:
        e.score = Score(0.0)
    assert collate([group]).reward_at_units().sum(1).tolist() == [1.5, 1.5, 1.5, 1.5]


def test_several_steps_after_one_answer_add_up():
    class Env:
        def reset(self, task, seed):
            return Observation(messages=task.prompt)

        def step(self, action):
            return Observation(), 0.5, False, False, {}

    async def thrice(task, policy, env):
        action = await policy.act(env.reset(task, policy.seed))
        for _ in range(3):
            env.step(action)

    (group,) = Engine(FakePolicy(), program=thrice, environment=Env).rollout([ask("a")], 1, Sampling(max_new_tokens=3))
    assert group.episodes[0].segments[0].reward == (1.5,)


def test_every_token_records_its_version():
    async def chat_with_update(task, policy, env):
        await policy.act(Observation(messages=task.prompt))
        fake.version = 7
        await policy.act(Observation(messages=user("next", 0), append=True))

    fake = FakePolicy(scripted({"q": "a", "next": "b"}))
    (group,) = Engine(fake, program=chat_with_update).rollout([ask("q")], 1, Sampling(temperature=0))
    segment = group.episodes[0].segments[0]
    assert segment.version[segment.mask].tolist() == [0, 0, 7, 7]


def test_the_context_limit_shortens_answers_and_never_prompts():
    engine = Engine(FakePolicy(), max_context=10)
    long, short = engine.rollout([ask("long", "a prompt of many bytes"), ask("s")], 1, Sampling(max_new_tokens=50, min_new_tokens=50))
    assert "task 'long'" in long.episodes[0].error and "never cut" in long.episodes[0].error
    assert len(short.episodes[0].segments[0]) == 7 and short.episodes[0].stop == "length"


def test_it_works_inside_a_running_event_loop():
    async def notebook():
        return Engine(FakePolicy()).rollout([ask("a")], 2, Sampling(max_new_tokens=5))

    assert tokens(asyncio.run(notebook())) == tokens(Engine(FakePolicy()).rollout([ask("a")], 2, Sampling(max_new_tokens=5)))


def test_slow_environments_do_not_hold_up_the_others():
    order = []

    class Env:
        def reset(self, task, seed):
            return Observation(messages=task.prompt)

        async def step(self, action):
            if not order:
                order.append("slow starts")
                await asyncio.sleep(0.05)
                order.append("slow ends")
            else:
                order.append("fast")
            return Observation(), 2.0, True, False, {}

    (group,) = Engine(FakePolicy(scripted({"q": "yes"})), environment=Env).rollout([ask("q")], 3)
    assert order == ["slow starts", "fast", "fast", "slow ends"]
    assert [e.segments[0].reward for e in group.episodes] == [(2.0,)] * 3


def test_groups_are_submitted_while_others_still_generate():
    class Scorer:
        def __init__(self):
            self.order, self.alone, self.finished = [], [], False

        def submit(self, item, context):
            assert context.step == 3
            episodes = item.episodes if isinstance(item, Group) else [item]
            assert all(e.turns for e in episodes)
            if isinstance(item, Group):
                self.order.append((item.task.id, policy.counts["decode"]))
            else:
                self.alone.append(item.task.id)

        def finish(self):
            self.finished = True

    policy = FakePolicy(scripted({"short": "a", "long": "b" * 40}))
    scorer, progress = Scorer(), []
    Engine(policy).rollout([ask("long"), ask("short")], 2, context=Context(step=3), score=scorer, on_progress=lambda *a: progress.append(a))
    assert (
        scorer.alone == ["short", "long"]
        and [name for name, _ in scorer.order] == ["short", "long"]
        and scorer.order[0][1] < scorer.order[1][1]
    )
    assert scorer.finished and progress[0] == (0, 4, 0) and progress[-1][:2] == (4, 4) and progress[-1][2] == 2 * 2 + 2 * 41


def test_asking_to_stop_from_another_thread_ends_the_rollout():
    from fovea.rollout.engine import Rollout, Stopped, run_anywhere

    class Env:
        def reset(self, task, seed):
            return Observation(messages=task.prompt)

        async def step(self, action):
            await asyncio.sleep(60)

    rollout = Rollout(
        Engine(FakePolicy(), environment=Env),
        Engine(FakePolicy()).rollout([ask("a")], 1),
        Sampling(max_new_tokens=2),
        Context(),
        None,
        None,
        0,
    )
    threading.Timer(0.1, rollout.stop.set).start()
    with pytest.raises(Stopped):
        run_anywhere(rollout.drive, rollout.stop)


def test_one_act_at_a_time():
    async def both(task, policy, env):
        await asyncio.gather(policy.act(Observation(messages=task.prompt)), policy.act(Observation(messages=task.prompt)))

    (group,) = Engine(FakePolicy(), program=both).rollout([ask("a")], 1, Sampling(max_new_tokens=3))
    assert "another act" in group.episodes[0].error


def test_an_environment_instead_of_its_class_is_refused():
    class Env:
        pass

    with pytest.raises(TypeError, match="a new environment for each episode"):
        Engine(FakePolicy(), environment=Env())  # type: ignore[arg-type]
