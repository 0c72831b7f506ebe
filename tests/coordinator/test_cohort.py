from __future__ import annotations

from coordinator.cohort import choose

PEOPLE = [f"client-{n}" for n in range(20)]


def test_a_cohort_depends_on_names_seed_and_round_alone():
    assert choose(PEOPLE, 5, 1, 3) == choose(list(reversed(PEOPLE)), 5, 1, 3)
    assert choose(PEOPLE, 5, 1, 3) != choose(PEOPLE, 5, 2, 3)
    assert choose(PEOPLE, 5, 1, 3) != choose(PEOPLE, 5, 1, 4)


def test_everybody_is_asked_when_there_are_too_few():
    assert choose(["b", "a"], 5, 0, 1) == ["a", "b"]


def test_over_many_rounds_everybody_is_asked_about_equally_often():
    counts = dict.fromkeys(PEOPLE, 0)
    for number in range(1000):
        cohort = choose(PEOPLE, 5, 0, number)
        assert len(set(cohort)) == 5
        for client in cohort:
            counts[client] += 1
    # 1000 * 5 / 20 = 250, standard deviation sqrt(1000 * 0.25 * 0.75) = 14; five of them.
    assert all(abs(count - 250) < 70 for count in counts.values())
