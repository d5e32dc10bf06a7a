//! The report as a page that one can send: no script, no font, no picture from elsewhere.

use super::chart::{self, escape};
use super::{Cell, Report, Row, Section};
use crate::units;

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c1c1c; --soft: #6b6b6b; --line: #d8d8d8; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --soft: #9a9a9a; --line: #3a3a3a; --back: #161616; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.4rem; }
p, li { color: var(--soft); } b { color: var(--text); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: pre; } small { color: var(--soft); }
.faster { color: #1a8a4c; } .slower { color: #c0392b; }
svg { width: 100%; max-width: 58rem; height: auto; font-size: 12px; fill: var(--text); }
svg .grid { stroke: var(--line); } svg .one { stroke: var(--soft); } svg g line { stroke-width: 2; opacity: .55; }
svg polyline { stroke-width: 2; } .series { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.series h3 { font-size: .95rem; font-weight: 500; margin: 0; }
.key span { display: inline-block; margin-right: 1.2rem; } .key i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em; }
";

pub(super) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>plyfs bench: {image}</title><style>{STYLE}</style></head><body>\n\
         <h1>plyfs bench: {image}</h1><p>plyfs {version}, {length} run of {seconds:.0} s, {date}.<br>{place}.</p>\n",
        image = escape(&report.image),
        version = report.plyfs,
        length = report.length,
        seconds = report.seconds,
        date = escape(&date(report.began)),
        place = escape(&report.place()),
    );
    page += "<ul>";
    for contestant in &report.contestants {
        page += &format!("<li><b>{}</b>: {}</li>", escape(&contestant.name), escape(&contestant.about));
    }
    page += "</ul><p>Medians of interleaved rounds; less is better. The small line is the range from the least to the most. \
             A ratio with ~ lies within the noise.</p>\n";
    for section in &report.sections {
        page += &section_html(section);
    }
    if !report.left_out.is_empty() {
        page += "<h2>Left out</h2><ul>";
        for left in &report.left_out {
            page += &format!("<li><b>{}</b>: {}</li>", escape(&left.what), escape(&left.why));
        }
        page += "</ul>";
    }
    for note in &report.notes {
        page += &format!("<p><b>Note:</b> {}</p>", escape(note));
    }
    page + "</body></html>\n"
}

fn section_html(section: &Section) -> String {
    let mut html = format!("<h2>{}: {}</h2>", escape(section.group), escape(section.title));
    html += "<p class=\"key\">";
    for (number, name) in section.contestants.iter().enumerate() {
        html += &format!("<span><i style=\"background:{}\"></i>{}</span>", chart::colour(number), escape(name));
    }
    html += "</p>";
    let series = chart::series(section);
    if series.is_empty() {
        if let (Some(plot), Some(base)) = (chart::dots(section), &section.base) {
            html += &format!("<p>Times what {} takes, logarithmic:</p>{plot}", escape(base));
        }
    } else {
        html += "<div class=\"series\">";
        for one in &series {
            let plot = chart::lines(section, one).unwrap_or_default();
            html += &format!("<div><h3>{}</h3>{plot}</div>", escape(&one.title));
        }
        html += "</div>";
    }
    html + &table(section)
}

fn table(section: &Section) -> String {
    let mut html = String::from("<div class=\"wide\"><table><tr><th></th>");
    for name in &section.contestants {
        html += &format!("<th>{}</th>", escape(name));
    }
    html += "<th>n</th></tr>";
    for row in &section.rows {
        html += &format!("<tr><td>{}</td>", escape(&row.title));
        for cell in &row.cells {
            html += &cell.as_ref().map_or("<td>-</td>".into(), |cell| cell_html(row, cell));
        }
        html += &format!("<td>{}</td></tr>", row.rounds());
    }
    html + "</table></div>\n"
}

fn cell_html(row: &Row, cell: &Cell) -> String {
    let ratio = cell.ratio.map_or(String::new(), |ratio| {
        let (class, mark) = match (cell.within_noise, ratio < 1.0) {
            (true, _) => ("", "~"),
            (false, true) => ("faster", ""),
            (false, false) => ("slower", ""),
        };
        format!(" <span class=\"{class}\">{mark}{}</span>", units::ratio(ratio))
    });
    let range = format!("{} .. {}", row.unit.show(cell.min), row.unit.show(cell.max));
    format!("<td>{}{ratio}<br><small>{range}</small></td>", row.unit.show(cell.median))
}

/// Writes a time as date and time in UTC.
fn date(seconds: u64) -> String {
    let time = layer::Time { sec: i64::try_from(seconds).unwrap_or_default(), nsec: 0 };
    store::rfc3339(time)
}

#[cfg(test)]
mod tests {
    use super::super::samples;

    #[test]
    fn a_page_is_well_formed_and_needs_nothing_else() {
        let mut out = Vec::new();
        samples::report().write_html(&mut out).unwrap();
        let page = String::from_utf8(out).unwrap();
        for part in
            ["an image of &lt;4&gt; layers", "ours &amp; fast", "2023-11-14", "<polyline", "<circle", "not found"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("http") && !page.contains("<script"));
        for tag in ["svg", "table", "tr", "td", "ul", "li", "div", "p", "g", "span"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
