"""The study runs, and says what it must where chance has no say."""

from services.studies.experiments import run


def test_a_short_run_keeps_what_is_certain() -> None:
    study = run(True, 12, None)
    tables = {table.title.split(" (")[0].split(" of ")[0].split(",")[0]: table for table in study.tables}
    assert all(row[-1] for row in tables["Units moved when shares change"].rows)
    assert all(row[-1] for row in tables["Assignment"].rows)
    alarms = {str(row[0]): float(row[2] or 0) for row in tables["False alarms"].rows}
    assert alarms["sequential"] <= 2 / 12
    assert alarms["z every hour, visits as observations"] >= 4 / 12  # the floor is as bad as they say
    [plain, cuped] = next(table for title, table in tables.items() if title.startswith("CUPED")).rows
    assert float(cuped[1] or 1) < 0.85 < float(plain[1] or 0)
