"""Reports as one HTML page that needs nothing else: no script, no font, no file beside it.

    page         what all pages share: the verdict first
    verify_page  `moh-deploy verify --html`
    bench_page   `moh-deploy bench --html`
    templates    how they look

The other files work out where things lie; templates draw them.
"""
