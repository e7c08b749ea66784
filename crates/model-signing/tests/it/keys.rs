//! Keys in PEM, ours and OpenSSL's, and what is refused for one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use model_signing::{KeyError, SigningKey, Statement, VerifyingKey, verify};

/// Runs OpenSSL; `None`, and why on the standard error, where there is none.
fn openssl(arguments: &[&str], input: &str) -> Option<String> {
    use std::io::Write;
    let started = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) => {
            eprintln!("skipped: there is no openssl here: {e}");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_key_survives_its_file() {
    let key = SigningKey::generate().unwrap();
    let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
    assert_eq!(again.verifying_key(), key.verifying_key());
    let public = VerifyingKey::from_pem(key.verifying_key().to_pem()).unwrap();
    assert_eq!(public.fingerprint(), key.verifying_key().fingerprint());
    assert_ne!(SigningKey::generate().unwrap().verifying_key(), public);
    let shown = format!("{key:?}");
    assert_eq!(shown, format!("SigningKey({})", public.fingerprint()));
    assert_eq!(
        public.fingerprint().to_string().parse::<model_signing::Fingerprint>().unwrap(),
        public.fingerprint()
    );
}

#[test]
fn keys_of_openssl() {
    let Some(sec1) = openssl(&["ecparam", "-name", "prime256v1", "-genkey"], "") else { return };
    assert!(sec1.contains("EC PARAMETERS"), "{sec1}");
    let pkcs8 = openssl(&["pkcs8", "-topk8", "-nocrypt"], &sec1).unwrap();
    let public = openssl(&["pkey", "-pubout"], &sec1).unwrap();
    let compressed = openssl(&["ec", "-pubout", "-conv_form", "compressed"], &sec1).unwrap();
    assert_ne!(compressed, public);
    let (first, second) = (SigningKey::from_pem(&sec1).unwrap(), SigningKey::from_pem(&pkcs8).unwrap());
    let verifying = VerifyingKey::from_pem(&public).unwrap();
    assert_eq!((first.verifying_key(), second.verifying_key()), (verifying.clone(), verifying.clone()));
    assert_eq!(VerifyingKey::from_pem(&compressed).unwrap(), verifying);
    assert_eq!(verifying.to_pem(), public);
    let dos = public.replace('\n', "\r\n");
    assert_eq!(VerifyingKey::from_pem(&dos).unwrap(), verifying);
    let bundle = Statement::new("m", [("a", [1; 32])]).unwrap().sign(&first).unwrap();
    verify(&bundle, &[verifying]).unwrap();
}

#[test]
fn what_is_no_key_is_refused_by_its_name() {
    let ours = SigningKey::generate().unwrap();
    let (private, public) = (ours.to_pem().unwrap().to_string(), ours.verifying_key().to_pem().to_owned());
    let mut secret = vec![
        ("nothing", String::new(), "not a private key in PEM"),
        ("text", "swordfish".to_owned(), "not a private key in PEM"),
        ("a public one", public.clone(), "is a public key"),
        ("cut off", private[..60].to_owned(), "not a private key in PEM"),
        ("a slip", private.replacen("MIGH", "MIGI", 1), "no sound private key"),
        ("two", private.repeat(2), "more than one key"),
        (
            "ssh",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n".to_owned(),
            "OPENSSH",
        ),
    ];
    let mut open = vec![
        ("nothing", String::new(), "not a public key in PEM"),
        ("a private one", private.clone(), "is a private key, which does not belong here"),
        ("two", public.repeat(2), "more than one key"),
        ("a slip", public.replacen("MFkw", "MFkx", 1), "no sound public key"),
        ("a point off the curve", public.replacen("AE", "AF", 1), "no sound public key"),
        (
            "a certificate",
            "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
            "CERTIFICATE",
        ),
    ];
    for (curve, name) in [("secp384r1", "P-384"), ("secp521r1", "P-521"), ("secp256k1", "secp256k1")] {
        let Some(other) =
            openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")], "")
        else {
            return;
        };
        open.push((name, openssl(&["pkey", "-pubout"], &other).unwrap(), name));
        secret.push((name, other, name));
    }
    let rsa = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], "").unwrap();
    open.push(("RSA", openssl(&["pkey", "-pubout"], &rsa).unwrap(), "key of RSA"));
    secret.push(("RSA", rsa, "key of RSA"));
    let edwards = openssl(&["genpkey", "-algorithm", "ED25519"], "").unwrap();
    secret.push(("Ed25519", edwards, "key of Ed25519"));
    let p384 = openssl(&["ecparam", "-name", "secp384r1", "-genkey"], "").unwrap();
    secret.push(("P-384 as SEC1", p384, "no private key on the curve P-256"));
    let encrypted = openssl(&["pkcs8", "-topk8", "-passout", "pass:x"], &private).unwrap();
    secret.push(("encrypted", encrypted, "it is encrypted"));
    let old = openssl(&["ec", "-aes256", "-passout", "pass:x"], &private).unwrap();
    secret.push(("encrypted, as SEC1", old, "it is encrypted"));
    for (row, text, expected) in secret {
        let error = SigningKey::from_pem(&text).expect_err(row).to_string();
        assert!(error.contains(expected), "{row}: {error}");
    }
    for (row, text, expected) in open {
        let error = VerifyingKey::from_pem(&text).expect_err(row).to_string();
        assert!(error.contains(expected), "{row}: {error}");
    }
}

#[test]
fn a_private_key_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key.pem");
    assert!(matches!(SigningKey::open(&path), Err(KeyError::Read { .. })));
    fs::write(&path, SigningKey::generate().unwrap().to_pem().unwrap().as_bytes()).unwrap();
    for (mode, good) in [
        (0o600, true),
        (0o400, true),
        (0o640, true),
        (0o644, false),
        (0o660, false),
        (0o602, false),
        (0o604, false),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        match SigningKey::open(&path) {
            Ok(_) => assert!(good, "{mode:o}"),
            Err(e) => {
                assert!(!good && matches!(e, KeyError::Exposed { .. }), "{mode:o}: {e}");
                assert!(e.to_string().contains("`chmod 600"), "{e}");
            }
        }
    }
    fs::write(&path, "nothing").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let error = SigningKey::open(&path).unwrap_err();
    assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
}
