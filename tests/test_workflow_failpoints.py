"""Death at each step amid a chain of 20, a diamond and a group of 1,000, on real servers; a ledger outside KRQ counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from harness import Servers, Worker, ledger, until
from test_failpoints import SUBMIT, armed

import krq
from krq.failpoints import Failpoint

#: passes before the place fires: amid the work, as far as it is passed so often
PASSES = {Failpoint.INTAKE_POLLED: 2, Failpoint.RUN_STARTED: 300, Failpoint.RUN_ENDED: 300, Failpoint.TAKE_ANSWERED: 8,
          Failpoint.SETTLE_BEFORE: 12, Failpoint.SETTLE_ANSWERED: 12, Failpoint.LOG_BEFORE: 2, Failpoint.LOG_PUBLISHED: 2}


@pytest.mark.parametrize("point", [point for point in Failpoint if point not in SUBMIT and point is not Failpoint.RECOVER_SLICE])
def test_every_task_of_a_workflow_runs_once_wherever_its_worker_dies(
    point: Failpoint, servers: Servers, app: krq.KRQ, tmp_path: Path
) -> None:
    path, mark = tmp_path / "ledger", tmp_path / "fired"

    def step(name: object) -> krq.Signature[list[object]]:
        return app.signature("step", str(path), name, 0)

    diamond = (step("a") | krq.group(step("b"), step("c")) | step("d")).send()
    group = (krq.group(app.signature("work", str(path), f"g{n}", 0) for n in range(1_000)) | app.signature("count")).send()
    chain = krq.chain(*(step(n) for n in range(20))).send()
    worker = Worker(armed(servers, f"{point}:kill:{PASSES.get(point, 1)}@{mark}"), tmp_path / "w.log")
    try:
        assert chain.result(timeout=40) == list(range(20))
        assert diamond.result(timeout=40) == [["a", "b"], ["a", "c"], "d"]
        assert group.result(timeout=40) == 1_000
        until(mark.exists, f"{point} was passed; log:\n{worker.text}")
        until(lambda: "is ready:" in worker.text.partition("ended: killed by")[2], f"it goes on after {point}; log:\n{worker.text}")
    finally:
        worker.close()
    runs = Counter(line[1] for line in ledger(path) if line[0] == "S")
    assert runs.keys() == {"a", "b", "c", "d", *map(str, range(20)), *(f"g{n}" for n in range(1_000))}
    # what ran in a slot at its death, or had ended a moment before and was told to nobody
    again = [key for key, count in runs.items() if count > 1]
    assert max(runs.values()) <= 2
    assert len(again) <= 500  # one settled batch
