// What scrolls can be reached by key: tables that are wider than a phone, once the theme has wrapped them.
document$.subscribe(() =>
  requestAnimationFrame(() => {
    for (const each of document.querySelectorAll(".md-typeset__scrollwrap")) each.tabIndex = 0;
  }),
);
