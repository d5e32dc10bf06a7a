//! Manifests, indexes and image configs, as OCI and docker write them (OCI image-spec; docker image manifest v2 schema 2).

use std::collections::BTreeMap;

use layer::{DiffId, Digest};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result, shown};
use crate::json;
use crate::platform::Platform;

/// The longest manifest, index or config that is read, in bytes (distribution-spec asks for at least this).
pub const DOCUMENT_MAX: u64 = 4 << 20;

/// An OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// A docker manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The config of a docker image.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A docker layer, plain.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// An OCI layer, plain.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The config of an OCI image.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// containerd core/images/mediatypes.go.
const LAYERS: [&str; 13] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    DOCKER_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.diff.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// What a document names by digest.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// What its content is.
    pub media_type: Option<String>,
    /// The content's hash.
    pub digest: Digest,
    /// The content's length, in bytes.
    pub size: u64,
    /// What its maker noted.
    pub annotations: BTreeMap<String, String>,
    /// What the image runs on.
    pub platform: Option<Platform>,
    /// The content itself, embedded.
    pub data: Option<Vec<u8>>,
}

/// A document that stands for an image, or for several.
#[derive(Clone, Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// One image: its config and its layers.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its config.
    pub config: Descriptor,
    /// Base first.
    pub layers: Vec<Descriptor>,
}

/// The entries that may be an image or an index; others are skipped, as the specification asks.
#[derive(Clone, Debug)]
pub struct Index {
    /// In the order of the document.
    pub manifests: Vec<Descriptor>,
}

/// An image config, as far as the store cares; the bytes are kept as received.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the image runs on.
    pub platform: Option<Platform>,
    /// When its maker says that it was made.
    pub created: Option<layer::Time>,
    /// By whom.
    pub author: String,
    /// Base first.
    pub diff_ids: Vec<DiffId>,
    /// Oldest first.
    pub history: Vec<Past>,
    /// Environment, command and so on.
    pub settings: Value,
}

/// One step of an image's history.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Past {
    /// When, as written.
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// What its maker said of it.
    pub comment: Option<String>,
    /// Whether it made no layer.
    pub empty_layer: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<i64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    artifact_type: Option<String>,
    fs_layers: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: i64,
    annotations: Option<BTreeMap<String, Option<String>>>,
    platform: Option<RawPlatform>,
    data: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    author: Option<String>,
    rootfs: Option<RawRootfs>,
    history: Option<Vec<Past>>,
    config: Option<Value>,
}

#[derive(Deserialize)]
struct RawRootfs {
    r#type: Option<String>,
    diff_ids: Option<Vec<String>>,
}

/// Reads a manifest or an index; `declared` is the media type that its descriptor states.
///
/// # Errors
/// The rule that it breaks; [`Error::Unsupported`] for artifacts and docker's schema 1.
pub fn read_document(bytes: &[u8], what: &str, declared: Option<&str>) -> Result<Document> {
    let raw: RawDocument = json::parse_as(bytes).map_err(|why| Error::invalid(what, why))?;
    let stated = raw.media_type.as_deref().filter(|t| !t.is_empty());
    if let (Some(stated), Some(declared)) = (stated, declared)
        && stated != declared
    {
        return Err(Error::invalid(
            what,
            format!(
                "it says it is a {}, but what names it says {}",
                shown(stated.as_bytes()),
                shown(declared.as_bytes())
            ),
        ));
    }
    let media_type = stated.or(declared).unwrap_or_default();
    if raw.schema_version == Some(1)
        || raw.fs_layers.is_some()
        || media_type.contains("docker.distribution.manifest.v1+")
    {
        return Err(Error::unsupported(
            what,
            "it is a docker schema 1 manifest, which has no content hashes; push the image again with a current tool",
        ));
    }
    match (raw.manifests, raw.layers, raw.config) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err(Error::invalid(what, "it has the parts of a manifest and of an index"))
        }
        (Some(manifests), None, None) => {
            refuse_type(what, media_type, &[OCI_MANIFEST, DOCKER_MANIFEST], "the parts of an index")?;
            read_index(manifests, what)
        }
        (None, layers, Some(config)) => {
            refuse_type(what, media_type, &[OCI_INDEX, DOCKER_LIST], "the parts of a manifest")?;
            read_manifest(config, layers.unwrap_or_default(), raw.artifact_type, what)
        }
        (None, _, None) if raw.artifact_type.is_some() => Err(artifact(what, raw.artifact_type.as_deref())),
        (None, _, None) => Err(Error::invalid(what, "it is neither a manifest nor an index")),
    }
}

fn refuse_type(what: &str, media_type: &str, wrong: &[&str], parts: &str) -> Result<()> {
    match wrong.contains(&media_type) {
        true => Err(Error::invalid(what, format!("it has {parts}, but its media type is {media_type}"))),
        false => Ok(()),
    }
}

fn read_index(manifests: Vec<RawDescriptor>, what: &str) -> Result<Document> {
    let known = |raw: &RawDescriptor| {
        raw.media_type
            .as_deref()
            .is_none_or(|t| [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, ""].contains(&t))
    };
    let manifests = manifests.into_iter().filter(known).map(|raw| raw.check(what)).collect::<Result<_>>()?;
    Ok(Document::Index(Index { manifests }))
}

fn read_manifest(
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    artifact_type: Option<String>,
    what: &str,
) -> Result<Document> {
    match config.media_type.as_deref() {
        Some(OCI_CONFIG | DOCKER_CONFIG) => {}
        other => return Err(artifact(what, artifact_type.as_deref().or(other))),
    }
    for layer in &layers {
        let media_type = layer.media_type.as_deref().unwrap_or_default();
        if media_type.ends_with("+encrypted") {
            return Err(Error::unsupported(
                what,
                "its layers are encrypted; decrypt the image first (skopeo copy --decryption-key)",
            ));
        }
        if !LAYERS.contains(&media_type) {
            let why = format!("a layer of media type '{}', which is not known here", shown(media_type.as_bytes()));
            return Err(Error::unsupported(what, why));
        }
    }
    let layers = layers.into_iter().map(|raw| raw.check(what)).collect::<Result<_>>()?;
    Ok(Document::Manifest(Manifest { config: config.check(what)?, layers }))
}

fn artifact(what: &str, kind: Option<&str>) -> Error {
    let kind = shown(kind.unwrap_or("of unknown type").as_bytes());
    Error::unsupported(what, format!("it is an artifact ({kind}), not an image that can be mounted"))
}

impl RawDescriptor {
    fn check(self, what: &str) -> Result<Descriptor> {
        // It quotes what it could not read.
        let digest = self.digest.parse::<Digest>();
        let digest = digest.map_err(|why| Error::invalid(what, shown(why.to_string().as_bytes())))?;
        let size = u64::try_from(self.size)
            .map_err(|_| Error::invalid(what, format!("the size of {digest} is {}", self.size)))?;
        let data = match self.data {
            Some(text) => Some(
                base64(text.as_bytes())
                    .ok_or_else(|| Error::invalid(what, format!("the embedded content of {digest} is no base64")))?,
            ),
            None => None,
        };
        let annotations = self.annotations.unwrap_or_default().into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
        let platform = self.platform.and_then(|raw| read_platform(raw.os, raw.architecture, raw.variant));
        Ok(Descriptor {
            media_type: self.media_type.filter(|t| !t.is_empty()),
            digest,
            size,
            annotations,
            platform,
            data,
        })
    }
}

fn read_platform(os: Option<String>, architecture: Option<String>, variant: Option<String>) -> Option<Platform> {
    let (os, architecture) = (os.filter(|s| !s.is_empty())?, architecture.filter(|s| !s.is_empty())?);
    Some(Platform::new(&os, &architecture, variant.as_deref()))
}

impl Descriptor {
    /// Tells whether this is buildkit's provenance or the like: never an image to run.
    pub fn is_attestation(&self) -> bool {
        let annotated =
            self.annotations.get("vnd.docker.reference.type").map(String::as_str) == Some("attestation-manifest");
        annotated || self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }
}

/// Reads an image config.
///
/// # Errors
/// The rule that it breaks.
pub fn read_config(bytes: &[u8], what: &str) -> Result<Config> {
    let raw: RawConfig = json::parse_as(bytes).map_err(|why| Error::invalid(what, why))?;
    let rootfs = raw.rootfs.ok_or_else(|| Error::invalid(what, "it has no rootfs"))?;
    if let Some(kind) = rootfs.r#type.filter(|kind| kind != "layers") {
        return Err(Error::invalid(what, format!("its rootfs is of type '{}', not 'layers'", shown(kind.as_bytes()))));
    }
    let parse =
        |text: &String| text.parse().map(DiffId).map_err(|why| Error::invalid(what, format!("diff_ids: {why}")));
    Ok(Config {
        platform: read_platform(raw.os, raw.architecture, raw.variant),
        created: raw.created.as_deref().and_then(crate::time::parse_rfc3339),
        author: raw.author.unwrap_or_default(),
        diff_ids: rootfs.diff_ids.unwrap_or_default().iter().map(parse).collect::<Result<_>>()?,
        history: raw.history.unwrap_or_default(),
        settings: raw.config.unwrap_or(Value::Null),
    })
}

/// Reads standard base64 (RFC 4648); padding may be left out; `None` for anything else.
pub(crate) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|&b| b != b'=').map_or(0, |last| last + 1);
    if text.len() - end > 2 || end % 4 == 1 || (text.len() != end && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(end / 4 * 3 + 2);
    let (mut bits, mut count) = (0u32, 0);
    for &c in &text[..end] {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(config_type: &str, extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{D}","size":2}},"layers":[]{extra}}}"#
        )
    }

    #[test]
    fn confusing_documents_are_refused() {
        let read = |text: &str, declared| read_document(text.as_bytes(), "x", declared);
        assert!(matches!(read(&manifest(OCI_CONFIG, ""), None), Ok(Document::Manifest(_))));
        for (text, declared, says) in [
            (manifest(OCI_CONFIG, r#","manifests":[]"#), None, "parts of a manifest and of an index"),
            (manifest(OCI_CONFIG, r#","mediaType":"a""#), Some("b"), "what names it says b"),
            (manifest(OCI_CONFIG, ""), Some(OCI_INDEX), "parts of a manifest"),
            (r#"{"manifests":[]}"#.into(), Some(OCI_MANIFEST), "parts of an index"),
            (manifest("application/vnd.oci.empty.v1+json", ""), None, "artifact"),
            (manifest("application/vnd.cncf.helm.config.v1+json", ""), None, "artifact (application/vnd.cncf.helm"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), None, "schema 1"),
            ("{}".into(), None, "neither"),
            ("[]".into(), None, "no JSON object"),
            (format!(r#"{{"manifests":[{{"digest":"{D}","size":-1}}]}}"#), None, "is -1"),
            (r#"{"manifests":[{"digest":"sha512:00","size":1}]}"#.into(), None, "only sha256"),
            (r#"{"manifests":[{"digest":"sha256:../x","size":1}]}"#.into(), None, "hex digits"),
        ] {
            let error = read(&text, declared).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn unknown_things_in_an_index_are_skipped() {
        let text = format!(
            r#"{{"manifests":[{{"mediaType":"x/y","digest":"?","size":1}},{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":1,
            "annotations":null,"platform":{{"os":"unknown","architecture":"unknown"}},"future":{{}}}}]}}"#
        );
        let Ok(Document::Index(index)) = read_document(text.as_bytes(), "x", None) else { panic!("no index") };
        assert_eq!(index.manifests.len(), 1);
        assert!(index.manifests[0].is_attestation());
    }

    #[test]
    fn configs_may_leave_out_and_null_what_is_optional() {
        let text = format!(
            r#"{{"created":null,"history":null,"config":null,"rootfs":{{"type":"layers","diff_ids":["{D}"]}}}}"#
        );
        let config = read_config(text.as_bytes(), "x").unwrap();
        assert_eq!((config.diff_ids.len(), config.platform), (1, None));
        assert!(read_config(b"{}", "x").is_err());
        assert!(read_config(br#"{"rootfs":{"type":"layers","diff_ids":["md5:1"]}}"#, "x").is_err());
    }

    #[test]
    fn base64_is_read_strictly() {
        for (text, bytes) in
            [("", &b""[..]), ("Zg==", b"f"), ("Zg", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("AP/+", b"\0\xff\xfe")]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["Z", "Zg=", "Zg===", "Z g=", "Zm9v====", "Zm9v=", "-_=="] {
            assert_eq!(base64(bad.as_bytes()), None, "{bad}");
        }
    }
}
