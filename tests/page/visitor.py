"""One person in front of the chat page, with a browser of their own that notes every request and every complaint."""

import re
import time
from urllib.parse import urlsplit

PATIENCE = 30.0  # seconds for what should take a few hundredths, on a machine that may be busy
WORDS = ":not(:has(.note, .problem, .waiting))"  # of the model, not of the page
LISTEN = f"""
window.said = [];
new MutationObserver(() => {{
    const found = document.querySelectorAll("#chat [data-testid=bot] .message-content{WORDS}");
    const words = found.length ? found[found.length - 1].innerText.trim() : "";
    if (words && words !== window.said.at(-1)) window.said.push(words);
}}).observe(document, {{subtree: true, childList: true, characterData: true}});
"""


class Visitor:
    """What a person sees and does. `complaints` are errors of the console and of scripts."""

    def __init__(self, context, url):
        self.context, self.url = context, url
        self.requests, self.complaints, self.here = [], [], True
        context.set_default_timeout(1000 * PATIENCE)
        context.add_init_script(LISTEN)
        self.page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.here and self.complaints.append(str(error)))

    def enter(self):
        """Come to the page as somebody who was never here."""
        self.context.clear_cookies()
        self.requests, self.complaints, self.here = [], [], True
        self.open()

    def open(self):
        """Come to the page, until it knows them: its foot is the last that is filled in."""
        self.page.goto(self.url)
        self.find("#footer:has-text('of memory')").wait_for()

    def leave(self):
        """Go elsewhere and leave nothing behind; False if the window is closed, or was left already.

        What breaks off because of that is nothing to complain of.
        """
        self.here = False
        if self.page.is_closed() or not self.page.url.startswith(self.url):
            return False
        self.page.evaluate("localStorage.clear()")
        self.page.goto("about:blank")
        return True

    def _hear(self, message):
        if message.type == "error" and self.here:
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    @property
    def hosts(self):
        """The machines that the page asked for anything."""
        return {urlsplit(url).hostname for url in self.requests if not re.match("(data|blob|about):", url)}

    # what they see

    def find(self, selector):
        return self.page.locator(selector)

    def texts(self, selector):
        """Of all that there are at this moment."""
        return self.find(selector).evaluate_all("all => all.map(one => one.innerText.trim())")

    @property
    def box(self):
        return self.find("#question textarea")

    @property
    def cards(self):
        return self.find("#media .item:visible")

    @property
    def problems(self):
        return self.texts(".problem:visible")

    @property
    def questions(self):
        return self.texts("#chat [data-testid=user] .message-content:not(:has(.attached))")

    @property
    def answers(self):
        return self.texts(f"#chat [data-testid=bot] .message-content{WORDS}")

    @property
    def said(self):
        """The last answer as it was seen to grow."""
        return self.page.evaluate("window.said")

    @property
    def writing(self):
        """An answer is on its way: it can be stopped."""
        return self.find("#question .stop-button").is_visible()

    def until(self, happened, what):
        """Wait until a look at the page says so, and give what it found."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := happened():
                return found
            self.page.wait_for_timeout(20)
        raise AssertionError(f"waited in vain for {what}; problems shown: {self.problems}")

    def problem(self, words):
        """A problem that is shown with these words in it."""

        def shown():
            return next((one for one in self.problems if words.lower() in one.lower()), None)

        return self.until(shown, repr(words))

    # what they do

    def attach(self, *files):
        """Put files into the question box, until each has its card."""
        wanted = self.cards.count() + len(files)
        self.find("#question input[type=file]").first.set_input_files(list(files))
        self.until(lambda: self.cards.count() == wanted, f"{wanted} cards")

    def send(self, words=""):
        self.page.evaluate("window.said = []")
        self.box.fill(words)
        self.box.press("Enter")

    def begin(self, words=""):
        """Send a question, until some of the answer is there."""
        before = len(self.answers)
        self.send(words)
        return self.until(lambda: self.answers[before:], "the beginning of an answer")[-1]

    def ask(self, words=""):
        """Send a question; the answer, when it is written."""
        self.begin(words)
        return self.answer()

    def answer(self):
        """The last answer, when nothing is being written any more."""
        self.until(lambda: not self.writing, "the end of the answer")
        return self.answers[-1]

    def stop(self):
        self.find("#question .stop-button").click()

    def unfold(self, area):
        """Open an accordion, unless it is open."""
        head = self.find(f"#{area} button.label-wrap")
        if "open" not in head.get_attribute("class").split():
            head.click()

    def set(self, name, value):
        """Type into a setting's field."""
        field = self.find(f"#{name} input:not([type=range])")
        field.fill(str(value))
        field.press("Tab")
        slider = self.find(f"#{name} input[type=range]")
        if slider.count():
            self.until(lambda: float(slider.input_value()) == value, f"{name} to be {value}")
