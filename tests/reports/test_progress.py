from rich.progress import Progress

from localmix.reports.progress import Display


def test_bars_that_are_not_shown_end_without_a_line(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "stop", lambda bars: bars.console.print())  # as rich before 14.3 does
    with Display() as display:
        display.say("one")
        with display.paused():
            display.say("two")
    assert capsys.readouterr().err == "one\ntwo\n"
