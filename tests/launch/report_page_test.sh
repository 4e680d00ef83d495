#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The page of a report in headless Chromium, at two widths, light and dark: its layout as it measures itself, and the
# pixels of its screenshot. Usage: report_page_test.sh WRITE_SAMPLE_PAGE
# CHROMIUM names the browser; without one the test is skipped (exit code 77).
set -euo pipefail

write_page=$1
browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome; do
  [[ -n "$browser" ]] || browser=$(command -v "$name" || true)
done
if [[ -z "$browser" ]]; then
  echo "report_page_test.sh: skipped: no chromium here (apt-get install chromium)"
  exit 77
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
light=1
dark=0

fail() {
  echo "FAILED: $1" >&2
  if [[ -s "$folder/error" ]]; then tail -n 5 "$folder/error" | sed 's/^/    /' >&2; fi
  exit 1
}

# browse WIDTH,HEIGHT COLOURS OPTION... ADDRESS: what the browser prints. The sandbox refuses root.
browse() {
  HOME=$folder timeout --kill-after=5 120 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
    --no-first-run --user-data-dir="$folder/profile" --hide-scrollbars --force-device-scale-factor=1 \
    --window-size="$1" --blink-settings=preferredColorScheme="$2" "${@:3}" 2>"$folder/error" ||
    fail "the browser failed on ${*: -1}"
}

# output_of DOM: the text of its <output>.
output_of() { sed -n 's/.*<output[^>]*>\(.*\)<\/output>.*/\1/p' "$1"; }

# holds JSON TEXT...: each "key":value is in it.
holds() {
  local text
  for text in "${@:2}"; do [[ "${1%\}}," == *"$text,"* ]] || fail "'$text' is not in $1"; done
}

# rgb_of JSON KEY: a colour, "47, 134, 200".
rgb_of() { sed -n "s/.*\"$2\":\"rgb(\([0-9, ]*\))\".*/\1/p" <<<"$1"; }

# look_at PNG: how many colours it has, and its pixels by colour, as JSON; the browser itself decodes the picture.
look_at() {
  {
    echo '<!DOCTYPE html><output></output><img src="data:image/png;base64,'"$(base64 -w 0 "$1")"'"><script>
      onload = () => {
        const image = document.querySelector("img"), canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data, pixels = {};
        for (let i = 0; i < data.length; i += 4) {
          const colour = data[i] + ", " + data[i + 1] + ", " + data[i + 2];
          pixels[colour] = (pixels[colour] || 0) + 1;
        }
        const found = {colours: Object.keys(pixels).length, width: canvas.width};
        for (const colour in pixels) if (pixels[colour] >= 100) found[colour] = pixels[colour];
        document.querySelector("output").textContent = JSON.stringify(found);
      }</script>'
  } >"$folder/picture.html"
  browse 800,600 "$light" --dump-dom "file://$folder/picture.html" >"$folder/picture.dom"
  output_of "$folder/picture.dom"
}

"$write_page" "$folder/page.html"
bars=$(grep -cE 'class="(compute|wait|flight)[^>]* data-rank=' "$folder/page.html")
((bars > 500)) || fail "the sample has $bars bars only"

papers=()
for width in 800 1600; do
  for colours in "$light" "$dark"; do
    browse "$width,3000" "$colours" --dump-dom "file://$folder/page.html?check" >"$folder/dom"
    found=$(output_of "$folder/dom")
    holds "$found" "\"bars\":$bars" '"ranks":4' '"outside":0' '"empty":0' '"overlapping":0' '"textCut":0' '"cellsCut":0' \
      '"uncoloured":0' "\"pageWidth\":$width" '"pageOverflow":0' '"zoomed":[250,0,500]' '"tipHidden":true'
    # No table is wider than the page; names stand on activities of the zoomed timeline, all of them inside.
    holds "$found" '"scrolled":0' '"namesCut":0'
    [[ "$found" != *'"names":0,'* ]] || fail "no names on the activities of $found"
    # Attention, experts, dispatch and combine forward and backward; router, weights, reductions, the rest, waits.
    holds "$found" '"fills":13'
    [[ "$found" == *'"tip":"rank 0, shared experts\n'*' ms from '*'layer 0\nmicro-batch 0"'* ]] || fail "the tooltip in $found"
    # The second and third quarter of 61.39 ms.
    [[ "$found" == *'"zoomedAxis":["20","25","30","35","40","45"]'* ]] || fail "the axis in $found"
    (($(grep -c '<td>&lt;b&gt;"&amp;</td>' "$folder/dom") == 4)) || fail "the name of a host is not shown as it is"

    browse "$width,3000" "$colours" --screenshot="$folder/shot.png" "file://$folder/page.html" >/dev/null
    picture=$(look_at "$folder/shot.png")
    num_colours=$(sed -n 's/.*"colours":\([0-9]*\).*/\1/p' <<<"$picture")
    ((${num_colours:-0} > 100)) || fail "the screenshot is blank, or nearly: $picture"
    holds "$picture" "\"width\":$width"
    for key in experts paper; do
      [[ "$picture" == *"\"$(rgb_of "$found" "$key")\":"* ]] || fail "the colour $key of $found is not in $picture"
    done
    papers+=("$(rgb_of "$found" paper)")
  done
done
[[ "${papers[0]}" != "${papers[1]}" ]] || fail "light and dark are the same"

# A report that lacks all it may lack has one line in the place of each.
"$write_page" "$folder/bare.html" bare
browse 800,3000 "$light" --dump-dom "file://$folder/bare.html?check" >"$folder/dom"
holds "$(output_of "$folder/dom")" '"bars":0' '"textCut":0' '"cellsCut":0' '"pageOverflow":0'
(($(grep -c '<p class="note">' "$folder/dom") == 10)) || fail "not ten notes about what is absent"
