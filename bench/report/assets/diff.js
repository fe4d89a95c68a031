// Which words of a text stand in another one too, in the same order: a longest common subsequence of words.

const LARGEST = 4e6;
const tokens = (text) => text.match(/\s+|[\p{L}\p{N}_'’]+|[^\s\p{L}\p{N}_]/gu) || [];
const isWord = (token) => /^[\p{L}\p{N}_]/u.test(token);

// For each token of `text`: true if it is matched, false if not, null for what is no word. null if the texts are too long.
function matched(text, base) {
  const own = tokens(text);
  const places = own.map((token, i) => (isWord(token) ? i : -1)).filter((i) => i >= 0);
  const a = places.map((i) => own[i].toLowerCase());
  const b = tokens(base).filter(isWord).map((token) => token.toLowerCase());
  if (a.length * b.length > LARGEST) return null;
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      best[i * width + j] = a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const found = own.map((token) => (isWord(token) ? false : null));
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { found[places[i]] = true; i++; j++; }
    else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
    else j++;
  }
  return { own, found };
}

// The text with words marked: those that differ, or those in common. What stands between two marked words is marked too;
// a short word that is in common alone is not: every two texts share an "of".
function markedText(text, base, how) {
  const result = how === "none" || base === null || base === text ? null : matched(text, base);
  if (!result) return [text];
  const wanted = how === "common";
  const { own, found } = result;
  const flags = found.map((flag) => flag === wanted);
  for (let i = 0, last = -1; i < own.length; i++) {
    if (found[i] === null) continue;
    if (last >= 0 && flags[last] && flags[i]) flags.fill(true, last, i);
    last = i;
  }
  const parts = [];
  for (let i = 0; i < own.length;) {
    let end = i;
    while (end < own.length && flags[end] === flags[i]) end++;
    const piece = own.slice(i, end).join("");
    const telling = !wanted || /\s/.test(piece) || piece.length > 3;
    parts.push(flags[i] && telling ? h("mark", { class: wanted ? "common" : "differs" }, piece) : piece);
    i = end;
  }
  return parts;
}
