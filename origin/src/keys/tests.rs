//! Keys as files: made, opened, extended and copied.

use std::os::unix::fs::PermissionsExt;

use super::rotation::{NewRoot, Rotation};
use super::*;

#[test]
fn keys_reopen_as_they_were_made_and_are_private() {
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("var/origin");
    let made = Keys::create(&data).unwrap();
    let opened = Keys::open(&data).unwrap();
    assert_eq!(opened.tree_id(), made.tree_id());
    assert_eq!(opened.verifying_key(), made.verifying_key());
    assert_eq!(opened.authority().certificate(), made.authority().certificate());
    assert!(opened.server_tls(Arc::new(|_: &_| true)).is_ok());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join(KEYS))), (0o700, 0o700));
    let files = opened.backup_files();
    assert_eq!(files.len() - 1, fs::read_dir(data.join(KEYS)).unwrap().count());
    assert!(!files.contains(&data.join(ROOT_KEY)), "a backup has no root key");
    assert_eq!(mode(&data.join(ROOT_KEY)), 0o600);
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn create_refuses_what_is_initialised_or_someone_elses() {
    let data = tempfile::tempdir().unwrap();
    assert!(matches!(Keys::open(data.path()), Err(KeysError::NotInitialised { .. })));
    let first = Keys::create(data.path()).unwrap();
    assert!(matches!(Keys::create(data.path()), Err(KeysError::Initialised { .. })));
    assert_eq!(Keys::open(data.path()).unwrap().tree_id(), first.tree_id());

    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("index.html"), "").unwrap();
    fs::set_permissions(foreign.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(Keys::create(foreign.path()), Err(KeysError::NotEmpty { .. })));
    assert_eq!(fs::read_dir(foreign.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(foreign.path()).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn an_interrupted_create_is_not_initialised_and_is_made_anew() {
    let data = tempfile::tempdir().unwrap();
    Keys::create(data.path()).unwrap();
    fs::rename(data.path().join(KEYS), data.path().join(KEYS_NEW)).unwrap();
    assert!(matches!(Keys::open(data.path()), Err(KeysError::NotInitialised { .. })));
    let again = Keys::create(data.path()).unwrap();
    assert_eq!(Keys::open(data.path()).unwrap().tree_id(), again.tree_id());
    assert!(!data.path().join(KEYS_NEW).exists());
}

#[test]
fn another_format_and_damage_are_told_apart() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let format = data.path().join(FORMAT);
    let text = fs::read_to_string(&format).unwrap();
    fs::write(&format, text.replace("origin 1", "origin 2")).unwrap();
    let found = Keys::open(data.path());
    assert!(matches!(found, Err(KeysError::Format { found, .. }) if found == "syncd-origin 2"));
    fs::write(&format, &text).unwrap();
    for file in keys.backup_files() {
        let good = fs::read(&file).unwrap();
        fs::write(&file, "x").unwrap();
        assert!(Keys::open(data.path()).is_err(), "{}", file.display());
        fs::remove_file(&file).unwrap();
        assert!(Keys::open(data.path()).is_err(), "{}", file.display());
        fs::write(&file, good).unwrap();
    }
    assert!(Keys::open(data.path()).is_ok());
}

#[test]
fn the_origins_certificate_is_reissued_in_the_last_third_of_its_life() {
    let data = tempfile::tempdir().unwrap();
    let made = OffsetDateTime::now_utc() - time::Duration::days(700);
    let keys = Keys::create_at(data.path(), None, made).unwrap();
    let ends = |keys: &Keys| validity(&keys.in_force().certificate).unwrap().not_after;
    let first = ends(&keys);
    assert!(!keys.reissue_origin_certificate(made + time::Duration::days(700)).unwrap());
    assert!(keys.reissue_origin_certificate(made + time::Duration::days(740)).unwrap());
    assert!(!keys.reissue_origin_certificate(made + time::Duration::days(741)).unwrap());
    let second = ends(&Keys::open(data.path()).unwrap());
    assert_eq!((second, (second - first).whole_days()), (ends(&keys), 740));
    // Down for years, and no longer than the authority, which is extended first.
    assert!(keys.reissue_origin_certificate(made + time::Duration::days(3_000)).unwrap());
    assert_eq!(ends(&keys), keys.authority().validity().not_after);
    assert!(!keys.reissue_origin_certificate(made + time::Duration::days(3_500)).unwrap());
    assert!(!keys.reissue_origin_certificate(made + time::Duration::days(3_700)).unwrap());
}

#[test]
fn the_authority_is_extended_in_the_last_third_of_its_life_and_stays_the_same_one() {
    let data = tempfile::tempdir().unwrap();
    let made = OffsetDateTime::now_utc();
    let keys = Keys::create_at(data.path(), None, made).unwrap();
    let first = keys.authority();
    let day = |days| made + time::Duration::days(days);
    assert!(!keys.extend_authority(day(2_400)).unwrap());
    assert!(keys.extend_authority(day(2_450)).unwrap());
    assert!(!keys.extend_authority(day(2_451)).unwrap());
    let again = Keys::open(data.path()).unwrap();
    let longer = again.authority().validity().not_after - first.validity().not_after;
    assert_eq!((again.authority().key_id(), longer.whole_days()), (first.key_id(), 2_450));
    // A clock that is off by decades is not believed.
    assert!(!again.extend_authority(day(9_000)).unwrap() && !again.extend_authority(day(-2)).unwrap());
    let warned = |days| again.warnings(day(days)).iter().any(|warning| warning.contains("authority"));
    assert!(!warned(5_700) && warned(5_750), "{:?}", again.warnings(day(5_750)));
}

#[test]
fn an_old_trust_document_is_warned_of_and_nothing_needs_the_root_key() {
    let data = tempfile::tempdir().unwrap();
    let made = OffsetDateTime::now_utc();
    let keys = Keys::create_at(data.path(), None, made).unwrap();
    let about = |what: &str, days| {
        let warnings = keys.warnings(made + time::Duration::days(days));
        warnings.iter().any(|warning| warning.contains(what))
    };
    fs::remove_file(keys.root_key_here().unwrap()).unwrap();
    assert_eq!(keys.root_key_here(), None);
    assert!(!about("trust document", 729) && about("trust document 1", 731));
    assert!(Keys::open(data.path()).is_ok());
}

fn root_key(data: &Path) -> RootKey {
    RootKey::from_text(&key_file::read(&data.join(ROOT_KEY)).unwrap(), None).unwrap()
}

/// Signs the first generation that these keys allow.
fn sign(keys: &Keys, tree_id: TreeId, key: &SigningKey) -> SignedGeneration {
    let (trust, root, label) = (keys.trust(), syncd_shared::RootEntry::empty(), String::new());
    let (epoch, number) = (trust.document().epochs.first, trust.document().numbers.first);
    Generation { tree_id, epoch, number, trust: 1, root, parent: None, created_ms: 0, label }.sign(key)
}

fn rotate(keys: &Keys, rotation: Rotation<'_>) -> SignedTrust {
    let document = keys.prepare(&rotation, OffsetDateTime::now_utc()).unwrap();
    let signed = document.sign(&root_key(&keys.data).key).unwrap();
    keys.take(&signed).unwrap();
    signed
}

#[test]
fn generations_of_earlier_keys_still_verify_and_strange_ones_do_not() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let keys = Keys::create(data.path()).unwrap();
    let other = Keys::create(other.path()).unwrap();
    let mut signed = vec![sign(&keys, keys.tree_id(), &keys.signing_key())];
    for _ in 0..2 {
        rotate(&keys, Rotation { signing: true, ..Rotation::default() });
        signed.push(sign(&keys, keys.tree_id(), &keys.signing_key()));
    }
    let keys = Keys::open(data.path()).unwrap();
    for (generation, is_newest) in signed.iter().zip([false, false, true]) {
        assert_eq!(keys.verify(generation.record(), generation.signature()).as_ref(), Ok(generation));
        let as_agents = keys.verify_newest(generation.record(), generation.signature());
        assert_eq!(as_agents.is_ok(), is_newest);
    }
    let strange = sign(&keys, keys.tree_id(), &other.signing_key());
    assert_eq!(keys.verify(strange.record(), strange.signature()), Err(GenerationError::Signature));
    let elsewhere = sign(&keys, other.tree_id(), &keys.signing_key());
    let refused = keys.verify(elsewhere.record(), elsewhere.signature());
    assert!(matches!(refused, Err(GenerationError::OtherTree { .. })));
}

#[test]
fn a_taken_document_replaces_the_keys_at_once_and_for_good() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let (old_key, old_authority) = (keys.verifying_key(), keys.authority().key_id());
    let mut changes = keys.trust_changes();
    let both = Rotation { signing: true, authority: true, ..Rotation::default() };
    let document = keys.prepare(&both, OffsetDateTime::now_utc()).unwrap();
    assert_eq!(keys.pending().unwrap().as_ref(), Some(&document));
    assert_eq!((keys.verifying_key(), keys.trust().number()), (old_key, 1), "nothing yet");
    let signed = document.sign(&root_key(data.path()).key).unwrap();
    keys.take(&signed).unwrap();
    keys.take(&signed).unwrap();
    assert!(changes.has_changed().unwrap() && **changes.borrow_and_update() == signed);
    for keys in [&keys, &Keys::open(data.path()).unwrap()] {
        assert_eq!(keys.trust().number(), 2);
        assert_ne!((keys.verifying_key(), keys.authority().key_id()), (old_key, old_authority));
        assert_eq!(keys.standing(old_authority), AuthorityStanding::Replaced);
        assert_eq!(keys.in_force().earlier.len(), 1, "its certificates may be renewed");
        assert_eq!(keys.pending().unwrap(), None);
        assert_eq!(keys.token().unwrap().trust, 2);
    }
    rotate(&keys, Rotation { retire: true, ..Rotation::default() });
    assert!(keys.in_force().earlier.is_empty());
    assert_eq!(keys.standing(old_authority), AuthorityStanding::Retired);
}

#[test]
fn a_document_that_does_not_wait_or_is_not_of_this_root_is_not_taken() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let root = root_key(data.path());
    let first =
        keys.prepare(&Rotation { signing: true, ..Rotation::default() }, OffsetDateTime::now_utc()).unwrap();
    let second =
        keys.prepare(&Rotation { signing: true, ..Rotation::default() }, OffsetDateTime::now_utc()).unwrap();
    let replaced = keys.take(&first.sign(&root.key).unwrap());
    assert!(matches!(replaced, Err(KeysError::NotPending { number: 2 })));
    let stranger = RootKey::generate(keys.tree_id()).unwrap();
    let mut posed = second.clone();
    posed.root_key = stranger.key.verifying_key();
    let posed = keys.take(&posed.sign(&stranger.key).unwrap());
    assert!(matches!(posed, Err(KeysError::NotPending { .. })));
    keys.take(&second.sign(&root.key).unwrap()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[test]
fn an_interrupted_taking_is_finished_or_void() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let directory = data.path().join(KEYS);
    let both = Rotation { signing: true, authority: true, ..Rotation::default() };
    let document = keys.prepare(&both, OffsetDateTime::now_utc()).unwrap();
    let signed = document.sign(&root_key(data.path()).key).unwrap();
    let old = keys.verifying_key();
    drop(keys);
    let before = tempfile::tempdir().unwrap();
    copy(&directory, before.path());
    assert_eq!(Keys::open(data.path()).unwrap().verifying_key(), old, "before the document was written");
    let taken = Keys::open(data.path()).unwrap();
    taken.take(&signed).unwrap();
    let trust = fs::read(directory.join(TRUST)).unwrap();
    let new = (taken.verifying_key(), taken.authority().key_id());
    drop(taken);
    // Stopped after each number of moved files.
    let moved = [SIGNING_KEY, CA_CERTIFICATE, CA_KEY, ORIGIN_CERTIFICATE, ORIGIN_KEY, EARLIER_AUTHORITIES];
    for done in 0..=moved.len() {
        fs::remove_dir_all(&directory).unwrap();
        copy(before.path(), &directory);
        fs::write(directory.join(TRUST), &trust).unwrap();
        for name in &moved[..done] {
            fs::rename(directory.join("next").join(name), directory.join(name)).unwrap();
        }
        let keys = Keys::open(data.path()).unwrap();
        assert_eq!((keys.verifying_key(), keys.authority().key_id()), new, "{done} files were moved");
        assert!(!directory.join("next").exists());
    }
}

#[test]
fn after_a_restore_documents_and_ranges_go_past_all_that_nodes_have_seen() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let copied = tempfile::tempdir().unwrap();
    copy(data.path(), copied.path());
    let signing = Rotation { signing: true, ..Rotation::default() };
    let lost = [rotate(&keys, signing), rotate(&keys, signing)];
    let newest = sign(&keys, keys.tree_id(), &keys.signing_key());
    // The copy does not know of either.
    let restored = Keys::open(copied.path()).unwrap();
    let old = (restored.verifying_key(), restored.authority().key_id());
    restored.note_number(lost[1].number());
    // A node that lies is not believed, nor one that is behind.
    restored.note_number(5_000);
    restored.note_number(1);
    let retire = Rotation { retire: true, ..Rotation::default() };
    let document = rotate(&restored, retire).document().clone();
    assert_eq!(document.number, 4);
    assert!(document.epochs.first > lost[1].document().epochs.last);
    assert!(document.numbers.first > lost[1].document().numbers.last);
    let ours = sign(&restored, keys.tree_id(), &restored.signing_key());
    assert_eq!(ours.may_follow(Some(&newest)), Ok(()));
    let new = (restored.verifying_key(), restored.authority().key_id());
    assert!(new.0 != old.0 && new.1 != old.1, "the copy's keys may have been replaced");
    // Known documents leave no gap, and an operator may name more.
    assert_eq!(rotate(&restored, retire).number(), 5);
    assert_eq!(rotate(&restored, Rotation { after: Some(7), ..retire }).number(), 8);
    assert_eq!(rotate(&restored, Rotation { after: Some(2), ..retire }).number(), 9);
    let typo = restored.prepare(&Rotation { after: Some(70_000), ..retire }, OffsetDateTime::now_utc());
    assert!(matches!(typo, Err(KeysError::TooFar { after: 70_000, known: 9 })), "{typo:?}");
}

#[test]
fn a_damaged_document_that_waits_is_named_and_stops_nothing() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let both = Rotation { signing: true, authority: true, ..Rotation::default() };
    keys.prepare(&both, OffsetDateTime::now_utc()).unwrap();
    let waiting = data.path().join(KEYS).join("next/document");
    key_file::write(&waiting, "bm90aGluZw==").unwrap();
    let keys = Keys::open(data.path()).unwrap();
    let named = keys.pending().unwrap_err().to_string();
    assert!(named.contains("keys/next/document is damaged") && named.contains("key rotate"), "{named}");
    keys.prepare(&both, OffsetDateTime::now_utc()).unwrap();
    assert!(keys.pending().unwrap().is_some());
}

#[test]
fn secrets_that_others_can_read_are_made_private_also_where_they_wait() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let both = Rotation { signing: true, authority: true, ..Rotation::default() };
    keys.prepare(&both, OffsetDateTime::now_utc()).unwrap();
    let mode = |name: &str| fs::metadata(data.path().join(name)).unwrap().permissions().mode() & 0o777;
    let secrets =
        ["root.key", "keys/ca.key", "keys/next/signing.key", "keys/next/ca.key", "keys/next/origin.key"];
    for name in secrets {
        fs::set_permissions(data.path().join(name), PermissionsExt::from_mode(0o644)).unwrap();
    }
    Keys::open(data.path()).unwrap();
    for name in secrets {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    // The root key is elsewhere.
    fs::remove_file(data.path().join("root.key")).unwrap();
    Keys::open(data.path()).unwrap();
}

#[test]
fn a_sealed_root_key_signs_with_its_passphrase_alone() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create_sealed(data.path(), Some("correct horse")).unwrap();
    let text = key_file::read(&data.path().join(ROOT_KEY)).unwrap();
    assert!(RootKey::from_text(&text, None).is_err());
    let root = RootKey::from_text(&text, Some("correct horse")).unwrap();
    assert_eq!(root.fingerprint(), keys.root_fingerprint());
}

#[test]
fn a_lost_root_key_is_replaced_and_signs_the_next_document() {
    let data = tempfile::tempdir().unwrap();
    let keys = Keys::create(data.path()).unwrap();
    let lost = keys.root_fingerprint();
    let root = Rotation { root: Some(NewRoot { passphrase: None }), ..Rotation::default() };
    let refused = keys.prepare(&root, OffsetDateTime::now_utc());
    assert!(matches!(refused, Err(KeysError::RootKeyHere { .. })), "it may be the only copy");
    fs::remove_file(keys.root_key_here().unwrap()).unwrap();
    let signed = rotate(&keys, Rotation { root: Some(NewRoot { passphrase: None }), ..Rotation::default() });
    assert_ne!(keys.root_fingerprint(), lost);
    assert_eq!(Keys::open(data.path()).unwrap().root_fingerprint(), signed.document().root_fingerprint());
}
