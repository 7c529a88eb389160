//! Attacks on the control stream by messages out of order or of another kind.

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_shared::SignedGeneration;

use super::fake_origin::{announce, peak_mib};
use super::lying_origin::World;

#[test]
fn what_no_origin_says_ends_the_connection_and_no_more() {
    let mut world = World::new("hostile-messages");
    let honest: SignedGeneration = world.origin.sign(2, World::version(2).root());
    let welcome = |protocol, trust_document| {
        ToAgent::Welcome(v1::Welcome {
            protocol,
            heartbeat_interval_ms: 500,
            trust_document,
            ..Default::default()
        })
    };
    let mut document = world.origin.trust.document().clone();
    document.number = 2;
    let mut forged = document.sign(&world.origin.root.key).expect("its own root").bytes().to_vec();
    *forged.last_mut().expect("a signature") ^= 1;
    let local = F::Local(v1::LocalContent {
        file: Bytes::from_static(&[1; 32]),
        source_path: Bytes::from_static(b"../../outside/precious"),
    });
    let said: Vec<(&str, bool, v1::OriginMessage)> = vec![
        ("nothing", true, v1::OriginMessage { message: None }),
        ("welcome twice", true, message(welcome(1, Bytes::new()))),
        ("an announcement before welcome", false, message(announce(&honest, None))),
        ("protocol 99", false, message(welcome(99, Bytes::new()))),
        ("a forged trust document", false, message(welcome(1, forged.clone().into()))),
        ("one later on", true, message(ToAgent::TrustDocument(forged.into()))),
        ("an announcement of nothing", true, message(ToAgent::Announce(v1::Announce::default()))),
    ];
    for (attack, welcomed, said) in said {
        let mut conversation = world.conversation.take().expect("it is connected");
        if !welcomed {
            // This conversation was already welcomed; the next one is not.
            drop(conversation);
            conversation = world.origin.conversation(false);
        }
        world.origin.say_raw(&conversation, said);
        while world.origin.hear(&mut conversation).is_some() {}
        drop(conversation);
        world.conversation = Some(world.origin.conversation(true));
        world.unharmed(attack);
        let error = world.agent.status().error;
        println!("{attack}: {error:?}");
    }
    // An update that does not decode is dropped, because the next connection would bring it again.
    world.survived("a path out of the root", 3, |_, _| vec![local]);
    world.honest(4);
    println!("{} messages survived, peak {} MiB", world.tried(), peak_mib(world.pid()));
}

fn message(message: ToAgent) -> v1::OriginMessage {
    v1::OriginMessage { message: Some(message) }
}
