"""How the page looks: quiet colours, the system's own fonts, nothing from elsewhere."""

from __future__ import annotations

import gradio as gr

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
BOTH = {  # of the light theme and the dark one
    "body_background_fill": ("#faf9f6", "#191817"),
    "body_text_color": ("#292524", "#e9e6e1"),
    "body_text_color_subdued": ("#6f6a63", "#a09a91"),
    "background_fill_primary": ("#ffffff", "#232120"),
    "background_fill_secondary": ("#f3f1ec", "#2c2a28"),
    "block_background_fill": ("#ffffff", "#232120"),
    "border_color_primary": ("#e6e2da", "#393633"),
    "block_border_color": ("#e6e2da", "#393633"),
    "block_label_text_color": ("#6f6a63", "#a09a91"),
    "block_title_text_color": ("#44403c", "#cfcac3"),
    "block_info_text_color": ("#6f6a63", "#a09a91"),
    "input_background_fill": ("#ffffff", "#1f1d1c"),
    "input_border_color": ("#e0dbd2", "#413e3a"),
    "input_placeholder_color": ("#8d877e", "#8d877e"),
    "color_accent_soft": ("#e3f1ef", "#1d3a37"),
    "slider_color": ("#0f766e", "#2dd4bf"),
    "button_primary_background_fill": ("#0f766e", "#2dd4bf"),
    "button_primary_background_fill_hover": ("#115e59", "#5eead4"),
    "button_primary_text_color": ("#ffffff", "#10201e"),
    "button_secondary_background_fill": ("#ffffff", "#2c2a28"),
    "button_secondary_background_fill_hover": ("#f3f1ec", "#383532"),
    "button_secondary_border_color": ("#e0dbd2", "#413e3a"),
    "button_secondary_border_color_hover": ("#c9c2b6", "#55514c"),
    "button_secondary_text_color": ("#44403c", "#d6d1ca"),
}


def theme() -> gr.themes.Base:
    look = gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", radius_size="lg", spacing_size="md", font=FONTS, font_mono=MONO
    )
    light = {name: colours[0] for name, colours in BOTH.items()}
    dark = {f"{name}_dark": colours[1] for name, colours in BOTH.items()}
    return look.set(**light, **dark, button_border_width="1px", block_shadow="none", block_radius="14px")


# Gradio takes its style sheet for what is inside of the page; what pops up is beside it, and entitled "Error"
HEAD = """
<style>.toast-title { display: none !important; }</style>
<script>
(() => {
    const chosen = localStorage.getItem("adapter_llm_theme");
    if (!chosen) return;
    const put = () => document.body && document.body.classList.toggle("dark", chosen === "dark");
    const watch = new MutationObserver(() => {
        if (document.querySelector("gradio-app .gradio-container")) { watch.disconnect(); put(); }
    });
    watch.observe(document, { childList: true, subtree: true });
    put();
})();
</script>
"""

CSS = """
.gradio-container { --calm: var(--body-text-color-subdued); --bad: #b42318; --bad-soft: #fdf0ee; }
.dark .gradio-container, .gradio-container.dark { --bad: #f5a197; --bad-soft: #3a2220; }
.gradio-container .main.app { max-width: 1360px; margin: 0 auto; padding: 0 24px !important; }
footer { display: none !important; }
.contain > .column { gap: 0; }
.prose p { margin: 0; }

/* the top */
#top { align-items: center; padding: 18px 0 14px; gap: 8px; flex-wrap: nowrap; }
#title { flex: 1 1 auto; min-width: 0 !important; border-width: 0 !important; }
#title .html-container, #footer .html-container, #status .html-container { padding: 0; }
#status, #footer { border-width: 0 !important; }
#title h1 { font-size: 1.15rem; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
#title p { color: var(--calm); font-size: 0.875rem; }
#top button { border-radius: 999px; font-weight: 500; padding: 6px 14px; white-space: nowrap; flex: none; }

/* what was said */
#columns { gap: 28px; align-items: stretch; }
#talk { gap: 10px; min-height: 0; flex-wrap: nowrap; }
#talk .form { border: none; background: none; box-shadow: none; overflow: visible; flex: none; }
#chat {
    border-width: 0 !important; background: none; flex: 1 1 0 !important; min-height: 0;
    overflow: hidden !important;
}
#chat > .wrapper { height: 100%; background: none; }
#chat .bubble-wrap { background: none; padding: 4px 8px 12px; height: 100%; overflow-y: auto; }
#chat .message-wrap { gap: 6px; padding: 0; margin-bottom: 0; max-width: 780px; margin-inline: auto; width: 100%; }
#chat .message-row { margin: 12px 0 0; max-width: 100%; }
#chat .message-row + .message-row, #chat .message-buttons + .message-row.bot-row:has(.note, .problem) {
    margin-top: 4px;
}
#chat .message-content .md { white-space: pre-wrap; overflow-wrap: anywhere; display: block; }
#chat .component, #chat .component > div { white-space: normal; }
#chat .user-row:has(.component, .attached) + .message-buttons { display: none; }
#chat .message-row:has(.note, .problem, .waiting) + .message-buttons [aria-label^=Copy] { display: none; }
#chat .user.message.component { background: none; padding: 0; }
#chat .component .minimal-audio-player {
    background: var(--background-fill-secondary); border-radius: 18px; padding: 6px 14px;
}
#chat .message-row.user-row { align-self: flex-end; max-width: 85%; }
#chat .user.message, #chat .bot.message {
    border: none; box-shadow: none; border-radius: 18px; font-size: 1rem; line-height: 1.6;
}
#chat .user.message { background: var(--background-fill-secondary); padding: 10px 16px; }
#chat .bot.message { background: none; padding: 2px 4px; }
#chat .message .prose, #chat .message .md { color: var(--body-text-color); font-size: 1rem; }
#chat .image-container { max-width: 300px; }
#chat .image-frame img { max-height: 240px; width: auto; border-radius: 10px; display: block; }
#chat video { max-height: 260px; border-radius: 10px; }
#chat .image-container .icon-button-wrapper, #chat button[aria-label="Share"] { display: none; }
#chat .message-buttons .icon-button-wrapper { border: none; background: none; box-shadow: none; }
#chat .message-buttons .icon-button { background: none !important; }
#chat .message-buttons-left .icon-button-wrapper { margin-left: -2px; padding: 0; }
#chat .message-buttons-right .icon-button-wrapper { margin-right: -2px; padding: 0; }
#chat .message-buttons { opacity: 0.55; margin: 0; transition: opacity 0.15s; }
#chat .message-buttons:hover, #chat .message-buttons:focus-within { opacity: 1; }
#chat .top-panel { display: none; }
#chat .attached { color: var(--calm); font-size: 0.9rem; }
#chat .attached::before { content: "\\25C7\\00A0\\00A0"; }
#chat .note, #chat .waiting { color: var(--calm); font-size: 0.875rem; }
.problem {
    color: var(--bad) !important; background: var(--bad-soft); border-radius: 10px; padding: 8px 12px;
    font-size: 0.9rem; line-height: 1.45; overflow-wrap: anywhere;
}
#chat .placeholder-content { justify-content: center; height: 100%; display: flex; flex-direction: column; }
#chat .placeholder { flex: none; height: auto; padding: 24px 0 8px; text-align: center; }
#chat .placeholder h3 { font-size: 1.6rem; font-weight: 600; letter-spacing: -0.02em; margin: 0 0 8px; }
#chat .placeholder p { color: var(--calm); }

/* examples */
#chat .examples {
    grid-template-columns: repeat(2, minmax(0, 1fr)); max-width: 560px; gap: 12px;
    margin: 16px auto 40px !important; padding: 0;
}
#chat .examples .example {
    border-radius: 16px; background: var(--block-background-fill); padding: 14px; transition: border-color 0.15s;
}
#chat .examples .example:hover { border-color: var(--slider-color); }

/* where questions are written */
#question {
    border: 1px solid var(--input-border-color) !important; border-radius: 24px !important; flex: none; width: 100%;
    background: var(--block-background-fill); box-shadow: 0 2px 12px rgb(0 0 0 / 5%) !important;
    padding: 6px 8px !important; max-width: 796px; margin-inline: auto;
}
#question:focus-within { border-color: var(--slider-color) !important; }
#question textarea { font-size: 1rem; background: none; }
#question .submit-button, #question .stop-button {
    border-radius: 50%; background: var(--slider-color); color: #fff;
}
.dark #question .submit-button, .dark #question .stop-button { color: #10201e; }
#status { max-width: 796px; margin-inline: auto; width: 100%; flex: none; color: var(--calm); font-size: 0.9rem;
    min-height: 1.4rem;
}
#status:not(:has(.problem)) { padding-inline: 16px; }
#chips { display: none; }

/* beside it */
#side { gap: 14px; overflow-y: auto; padding-bottom: 8px; flex-wrap: nowrap; }
#side .card {
    border: 1px solid var(--border-color-primary); border-radius: 16px; background: var(--block-background-fill);
    padding: 14px 16px; flex: none !important; overflow: hidden;
}
#media { gap: 12px; }
#media .block, #media .form { background: none; border-width: 0 !important; padding: 0; box-shadow: none; }
#side .html-container { padding: 0; }
#side h2, #side .card > .label-wrap { font-size: 0.95rem; font-weight: 600; margin: 0; }
#side .label-wrap .icon { font-size: 0.6rem; color: var(--calm); }
#nothing p, .fine { color: var(--calm); font-size: 0.85rem; line-height: 1.5; }
.item {
    display: grid !important; grid-template-columns: minmax(0, 1fr) auto; align-items: center; gap: 4px 10px !important;
    padding: 10px 12px; border-radius: 12px; background: var(--background-fill-secondary) !important;
}
.item .name .prose { display: flex; flex-wrap: wrap; gap: 0 8px; align-items: baseline; font-size: 0.9rem; }
.item .name strong {
    font-weight: 550; max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
.item .name span { color: var(--calm); font-size: 0.85rem; }
.item .name .problem { flex-basis: 100%; margin-top: 6px; }
.item .remove {
    align-self: start; background: none; border: none; color: var(--calm); padding: 4px 0;
    min-width: 0 !important;
}
.item .remove:hover { color: var(--bad); }
.item .form { grid-column: 1 / -1; display: flex; gap: 10px; overflow: visible; align-items: flex-end; }
.item .weight .wrap { display: grid; grid-template-columns: auto 1fr auto; align-items: center; gap: 10px; }
.item .weight .head, .item .weight .slider_input_container { display: contents; }
.item .weight label { order: 1; } .item .weight input[type=range] { order: 2; min-width: 40px; }
.item .weight .tab-like-container {
    order: 3; align-self: center; margin: 0; } .item .weight input[type=number] { width: 56px;
}
.item .weight .min_value, .item .weight .max_value { display: none; }
.item .weight span { margin: 0; font-size: 0.85rem; color: var(--calm); }
#media .quiet > .label-wrap { font-size: 0.9rem; font-weight: 500; color: var(--block-title-text-color); }
#media .quiet .column { gap: 8px; padding: 8px 1px 2px; }
#media .quiet textarea { border: 1px solid var(--input-border-color); border-radius: 10px; padding: 8px 10px; }
#settings .form, #retrieval .form { border: none; background: none; box-shadow: none; gap: 14px; margin-top: 10px; }
#settings .block, #retrieval .block { border-width: 0 !important; padding: 2px; background: none; }
.dark #side input[type=range] { --neutral-200: #4a4643; }
#settings .wrap { gap: 2px; }
#settings input[type=text] { border: 1px solid var(--input-border-color); border-radius: 8px; padding: 6px 10px; }
#explain .block { border-width: 0 !important; }
#explain .column { gap: 10px; padding-top: 10px; }
#explain-figure img, .looked { border-radius: 10px; }
.looked { width: 100%; margin: 10px 0 0; display: block; }
.told { line-height: 2; font-size: 1rem; }
.told mark {
    color: inherit; border-radius: 4px; padding: 2px 0; white-space: pre-wrap;
    background: color-mix(in srgb, var(--slider-color) calc(var(--much) * 55%), transparent);
}
#footer { color: var(--calm); font-size: 0.8rem; text-align: center; padding: 10px 0 12px; }
#footer span { opacity: 0.5; padding: 0 4px; }

@media (min-width: 860px) {
    #columns { height: calc(100dvh - 118px); flex-wrap: nowrap; }
    #side { max-width: 360px; }
}
@media (max-width: 859px) {
    .gradio-container .main.app { padding: 0 14px !important; }
    #top { padding: 10px 0 8px; gap: 6px; }
    #top button { padding: 5px 9px; font-size: 0.72rem; min-width: 0 !important; }
    #title p { display: none; }
    #talk { min-height: calc(100dvh - 76px); }
    #chat .bubble-wrap { padding-inline: 2px; }
    #chat .placeholder h3 { font-size: 1.3rem; }
    #chat .examples { gap: 8px; }
    #side { overflow: visible; }
}
"""
