/* The page of search results: sections whose title or text has the words that were asked for. What is searched is in sections.js,
so that it works in pages that were opened as files. `book/search.py` writes that file and loads this one. */
"use strict";
(() => {
  const MOST = 40;
  const AROUND = 90; // characters before and after a hit

  /** The text in small letters, without accents, with plain dashes and quotes, each of the same length as before. */
  const plain = (text) =>
    Array.from(text.toLowerCase(), (sign) => {
      const bare = sign.normalize("NFD").replace(/\p{M}/gu, "");
      return /^[\u2010-\u2015\u2212]$/.test(sign) ? "-" : sign === "\u2019" ? "'" : bare.length === sign.length ? bare : sign;
    }).join("");

  /** How well a section fits, and where its text does first; a fit of 0 is none. */
  function fit(section, phrase, words) {
    const { title, text } = section.plain;
    if (!words.every((word) => title.includes(word) || text.includes(word))) return { score: 0 };
    const whole = text.indexOf(phrase);
    const counted = words.map((word) => Math.min(9, text.split(word).length - 1));
    let score = 1 + counted.reduce((sum, count) => sum + Math.log1p(count), 0);
    if (whole >= 0) score += 10;
    if (title.includes(phrase)) score += 40;
    score += 5 * words.filter((word) => title.includes(word)).length;
    const places = words.map((word) => text.indexOf(word)).filter((place) => place >= 0);
    return { score, at: whole >= 0 ? whole : places.length ? Math.min(...places) : -1 };
  }

  /** A text with what was asked for in <mark>. */
  function marked(text, asked) {
    const made = document.createElement("span");
    const flat = plain(text);
    let last = 0;
    while (last < text.length) {
      const next = asked.map((word) => [flat.indexOf(word, last), word.length]).filter(([place]) => place >= 0);
      const [place, length] = next.sort((a, b) => a[0] - b[0] || b[1] - a[1])[0] || [text.length, 0];
      made.append(text.slice(last, place));
      if (length) made.append(Object.assign(document.createElement("mark"), { textContent: text.slice(place, place + length) }));
      last = place + length;
    }
    return made;
  }

  function show() {
    const query = (new URLSearchParams(location.search).get("q") || "").trim();
    for (const field of document.querySelectorAll('form.bd-search input[name="q"]')) field.value = query;
    const place = document.querySelector("#search-results");
    const heading = document.createElement("p");
    heading.setAttribute("role", "status");
    const phrase = plain(query).replace(/\s+/g, " ");
    const words = phrase.split(" ").filter(Boolean);
    if (!words.length) return;
    const found = window.nbvaeSections
      .map((section) => {
        section.plain = { title: plain(section.title), text: plain(section.text) };
        return { section, ...fit(section, phrase, words) };
      })
      .filter((each) => each.score > 0)
      .sort((a, b) => b.score - a.score);
    heading.textContent = found.length
      ? `${found.length} ${found.length === 1 ? "section" : "sections"} with “${query}”${found.length > MOST ? `, the first ${MOST}` : ""}`
      : `Nothing has “${query}”: try fewer or other words`;
    const list = document.createElement("ul");
    list.className = "search";
    for (const { section, at } of found.slice(0, MOST)) {
      const item = document.createElement("li");
      const link = Object.assign(document.createElement("a"), { href: section.url });
      link.append(marked(section.title, [phrase, ...words]));
      item.append(link);
      if (section.page !== section.title) item.append(Object.assign(document.createElement("span"), { textContent: ` in ${section.page}` }));
      if (at >= 0) {
        const start = at <= AROUND ? 0 : section.text.indexOf(" ", at - AROUND) + 1;
        const end = (section.text + " ").indexOf(" ", Math.min(section.text.length, at + phrase.length + AROUND));
        const part = document.createElement("p");
        part.append(start ? "… " : "", marked(section.text.slice(start, end), [phrase, ...words]), end < section.text.length ? " …" : "");
        item.append(part);
      }
      list.append(item);
    }
    place.replaceChildren(heading, list);
  }

  show();
})();
