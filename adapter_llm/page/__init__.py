"""The chat page: `python demo.py`. `launch.open_page` serves it; what knows nothing of Gradio can be used without."""
