"""The budget with a fake clock."""

from __future__ import annotations

from app.budget import Budget


def test_the_first_run_is_not_counted_and_the_share_is_kept() -> None:
    now = 0.0
    budget = Budget(0.1, clock=lambda: now)

    def spend(seconds: float) -> None:
        nonlocal now
        with budget.spending():
            now += seconds

    assert budget.allows()
    spend(50)
    assert budget.allows()
    spend(8)
    assert not budget.allows()  # 8 of 58
    now = 79
    assert not budget.allows()
    now = 80
    assert budget.allows()
    total = 0.0
    for _ in range(1000):
        now += 1
        if budget.allows():
            spend(3)
            total += 3
    assert 0.9 < (8 + total) / (0.1 * now) < 1.1
