"""A browser, a chat page of a tiny model, and people who visit it."""

from pathlib import Path

import browser as machine
import pytest

PANDAS = ["'future.no_silent_downcasting' is", "The copy keyword is"]  # Gradio's summary of timings, which nobody reads


def pytest_collection_modifyitems(items):
    for item in items:
        if "site" in item.fixturenames and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.loopback)
            item.add_marker(pytest.mark.filterwarnings(*(f"ignore:{words} deprecated" for words in PANDAS)))


@pytest.fixture(scope="session")
def chromium():
    """The path of a Chromium: looked for, and installed, when the first test asks for it and only then."""
    try:
        return machine.chromium()
    except machine.NoBrowser as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    """One browser for a file of tests: while it is open this thread's event loop is taken, so not for longer."""
    from playwright.sync_api import Error, sync_playwright

    arguments = machine.arguments(machine.noise(tmp_path_factory.mktemp("microphone") / "noise.wav"))
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        except Error as error:
            pytest.skip(f"{chromium} does not start; does it in a terminal? {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def talkative(tmp_path_factory, decoder):
    from talkative import Talkative

    return Talkative(tmp_path_factory.mktemp("talkative"), decoder)


@pytest.fixture(scope="module")
def settings():
    """What the page is started with; files of tests have their own."""
    from adapter_llm.page.launch import PageSettings
    from adapter_llm.results import GenerationOptions

    return PageSettings(port=0, max_file_size=2**20, options=GenerationOptions(max_new_tokens=24))


@pytest.fixture(scope="module")
def site(talkative, settings):
    """The chat page, served."""
    from adapter_llm.page.launch import open_page

    with open_page(talkative.pipe, settings) as page:
        yield page


@pytest.fixture(scope="module")
def windows():
    """Browser windows that nobody uses: the next visitor gets one without any trace of the last, in a fraction of a
    second."""
    return []


@pytest.fixture
def visit(browser, site, windows, capfd):
    """Lets people open the page, each in a browser window of their own, and sees them out.

    Whatever they do, no other machine may be asked for anything, their consoles have nothing to complain of, and
    nothing breaks in the server.
    """
    from visitor import Visitor

    visitors, plain = [], []

    def enter(**options):
        if options:
            person = Visitor(browser.new_context(**options), site.url)
        else:
            person = windows.pop() if windows else Visitor(browser.new_context(), site.url)
            plain.append(person)
        visitors.append(person)
        person.enter()
        return person

    yield enter
    for person in visitors:
        if person.leave() and person in plain:
            windows.append(person)
        else:
            person.context.close()
    assert [person.complaints for person in visitors if person.complaints] == []
    assert {host for person in visitors for host in person.hosts} <= {"127.0.0.1"}
    assert "Traceback" not in capfd.readouterr().err
