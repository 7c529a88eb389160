//! An enrolled agent that sends text meant for the operator: it stays on its own line in `status`, its JSON
//! and the origin's log.

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as M;
use syncd_tests::wait;

use super::bad_agent::{World, agent_message};

/// A line of `status`, a line of the log, and characters that move the cursor or reverse the text.
const FORGED: &str = "x\nagents   2 of 2 have it live\r\u{1b}[2J\u{9b}1A\u{202e}\u{2028}\n\
                      2026-01-01T00:00:00.000000Z  INFO all is well\n";

fn acts(text: &str) -> bool {
    text.chars().any(|c| c != '\n' && (c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)))
}

#[test]
fn an_agent_forges_no_line_of_the_status_or_the_log() {
    let mut world = World::small("hostile-text");
    let bad = world.enrolled("bad");
    // The second connection has another boot id: both are shown in a note, and logged.
    let first = world.runtime.block_on(bad.subscribed_as(FORGED, FORGED));
    let (sender, _stream) = world.runtime.block_on(bad.subscribed_as(&FORGED.replace('x', "y"), FORGED));
    drop(first);
    let failed = v1::Failed { generation: 1, retry: 3, reason: FORGED.into() };
    world.runtime.block_on(sender.send(agent_message(M::Failed(failed)))).expect("sent");

    wait::until("the origin to show what the agent said", || {
        let status = world.origin.status();
        let agent = status.agent("bad");
        (agent.error.is_some() && !agent.notes.is_empty()).then_some(())
    });
    let text = world.origin.cli("status", &[]).expect_success().stdout;
    assert_eq!(text.lines().filter(|line| line.starts_with("agents ")).count(), 1, "{text}");
    assert!(text.contains(r"x\nagents   2 of 2"), "it is shown, escaped: {text}");
    assert!(!acts(&text), "{text:?}");
    let json = world.origin.cli("status", &["--json"]).expect_success();
    let agents = json.json()["agents"].clone();
    let bad = agents.as_array().expect("a list").iter().find(|agent| agent["name"] == "bad").expect("there");
    for said in [bad["error"].as_str(), bad["notes"][0].as_str()] {
        let said = said.expect("shown");
        assert!(!said.contains('\n') && !acts(said), "{said:?}");
    }
    wait::until("the origin to log the second connection", || {
        world.origin_log().contains("two connections").then_some(())
    });
    let log = world.origin_log();
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00:00:00.000000Z")), "{log}");
    assert!(!acts(&log), "{log:?}");
}
