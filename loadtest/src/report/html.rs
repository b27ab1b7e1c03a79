//! The report as one page to open in a browser: style, script and data in one file that loads nothing.
//!
//! The script in the page reads the same JSON that `--json` writes, so that an old report can be drawn again and
//! the page cannot say anything the JSON does not.

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Draws a report: the JSON as `--json` writes it, to an HTML page.
///
/// What is missing in the report is left out of the page; a text that is no report makes a page that says so.
#[must_use]
pub fn render(report_json: &str) -> String {
    // The report comes last: a marker among its texts stays a text.
    PAGE.replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        .replace("{{report}}", &inside_script(report_json))
}

/// JSON that cannot end the `<script>` it stands in, nor open a comment there: a `<` can only be part of a string,
/// where its escape means the same.
fn inside_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const REPORTS: [&str; 4] = [
        include_str!("../../tests/reports/passed.json"),
        include_str!("../../tests/reports/redis-restart.json"),
        include_str!("../../tests/reports/idle.json"),
        include_str!("../../tests/reports/ended-early.json"),
    ];

    /// What the script in the page reads.
    fn embedded(page: &str) -> &str {
        let (_, rest) = page.split_once(r#"<script type="application/json" id="report">"#).unwrap();
        rest.split_once("</script>").unwrap().0
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = render("{}");
        for reference in
            ["http://", "https://", "src=", "@import", "url(", "import(", "fetch(", "{{"]
        {
            assert!(!page.contains(reference), "{reference} in the page");
        }
        assert_eq!(page.matches("href=").count(), 1, "only the empty icon");
        assert!(page.contains(r#"href="data:,""#));
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn texts_of_a_report_are_never_inserted_as_html() {
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(way), "{way} in the script");
        }
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let hostile = [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            "]]></SCRIPT >",
            "\u{2028}\u{2029}\0",
            "\"'`\\",
            "{{style}}{{script}}{{report}}",
            "$& $1",
        ];
        let scripts = render("{}").to_lowercase().matches("<script").count();
        for text in hostile {
            let report = json!({ "title": text, "totals": { "disconnects": { text: 1 } } });
            let page = render(&report.to_string());
            assert_eq!(serde_json::from_str::<Value>(embedded(&page)).unwrap(), report);
            assert_eq!(page.to_lowercase().matches("<script").count(), scripts, "{text}");
            assert!(!embedded(&page).contains('<'), "{text}");
        }
        assert!(!embedded(&render("</script> is no JSON")).contains('<'));
    }

    #[test]
    fn reports_arrive_whole_and_draw_the_same_page_each_time() {
        for report in REPORTS {
            let page = render(report);
            let read = |json| serde_json::from_str::<Value>(json).unwrap();
            assert_eq!(read(embedded(&page)), read(report));
            assert_eq!(page, render(report));
        }
    }
}
