"""The schedule holds every example once per epoch and depends on the seed alone."""

from __future__ import annotations

from nomoat.training.packing import StepSchedule, common_prefix, pack_step, schedule_steps


def test_packs_hold_every_example_once_and_never_too_many_tokens() -> None:
    lengths = [(7 * n) % 50 + 1 for n in range(100)]
    schedule = schedule_steps(lengths, epochs=2, batch_tokens=256, pack_tokens=64, seed=1)
    used = [number for step in schedule.steps for pack in step for number in pack]
    assert sorted(used) == sorted(list(range(100)) * 2)
    assert all(sum(lengths[number] for number in pack) <= 64 for step in schedule.steps for pack in step)
    assert all(sum(lengths[number] for pack in step for number in pack) <= 256 for step in schedule.steps)
    assert schedule.epoch_ends[-1] == len(schedule.steps)


def test_the_schedule_depends_on_the_seed_and_on_nothing_else() -> None:
    def make(seed: int) -> StepSchedule:
        return schedule_steps([10] * 40, epochs=1.5, batch_tokens=64, pack_tokens=32, seed=seed)

    assert make(1) == make(1) and make(1) != make(2)
    assert sum(len(pack) for step in make(1).steps for pack in step) == 60  # one and a half epochs of 40 examples


def test_first_fit_fills_the_room_that_is_left() -> None:
    assert pack_step([0, 1, 2, 3], [30, 60, 40, 70], 100) == ((3, 0), (1, 2))


def test_a_common_prefix_leaves_every_prompt_its_last_token() -> None:
    assert common_prefix([(1, 2, 3), (1, 2, 4, 5)]) == 2
    assert common_prefix([(1, 2), (1, 2, 3)]) == 1
    assert common_prefix([(7,), (7,)]) == 0
