//! The protobuf codec against bytes that a real kube-apiserver wrote into its store.

use machinery::{Object, codec, scalars};

#[test]
fn stored_bytes_are_read_and_written_as_upstream_does() {
    let text = include_str!("../testdata/peer.txt");
    let mut lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let mut count = 0;
    while let (Some(json), Some(stored)) = (lines.next(), lines.next()) {
        let expected = Object::from_json(json.as_bytes()).unwrap();
        let stored = scalars::base64_decode(stored).unwrap();
        let object = codec::decode_storage(&stored).unwrap();
        assert_eq!(object, expected);
        assert_eq!(codec::to_protobuf(&expected).unwrap(), stored, "{}", expected.kind());
        count += 1;
    }
    assert_eq!(count, 10);
}
