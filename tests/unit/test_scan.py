"""How a scan goes on behind what hangs."""

from scratch_slurm.service.scan import Scan


def test_a_listing_is_read_in_its_order_and_goes_on_behind_the_file_that_hangs() -> None:
    scan = Scan(None)
    assert scan.begin(()) is None and scan.is_listing
    scan.reached = True
    scan.list(["a", "b", "c"], ())
    scan.pass_by("a")
    assert (scan.lose(), scan.is_over) == ("b", False)
    assert scan.begin({"b"}) == ("c",)
    assert not scan.reached, "the next worker has not been answered yet"


def test_behind_the_last_file_there_is_nothing_to_go_on_with() -> None:
    scan = Scan(("a",))
    assert scan.begin(()) == ("a",)
    scan.reached = True
    assert (scan.lose(), scan.is_over) == ("a", True)


def test_a_source_that_gives_no_answer_ends_the_scan_and_no_file_is_to_blame() -> None:
    scan = Scan(("a", "b"))
    scan.begin(())
    assert (scan.lose(), scan.is_over) == (None, True)
    listing = Scan(None)
    listing.begin(())
    listing.reached = True
    assert (listing.lose(), listing.is_over) == (None, True), "the listing itself hangs"


def test_what_hangs_already_is_left_out() -> None:
    assert Scan(("a", "b")).begin({"a"}) == ("b",)
    scan = Scan(None)
    scan.begin(())
    scan.list(["a", "b"], {"a"})
    assert scan.begin(()) == ("b",)


def test_a_file_out_of_turn_changes_nothing() -> None:
    scan = Scan(("a", "b"))
    scan.begin(())
    scan.pass_by("b")
    assert scan.begin(()) == ("a", "b")
