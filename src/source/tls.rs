//! The TLS client configuration for connections to Postgres.
//!
//! Owns which certificates are trusted and how far they are checked. Knows nothing of sockets.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::error::{Error, Kind};
use crate::secret_file;

/// A client configuration that trusts `roots`, or the platform's roots where there are none.
///
/// # Errors
/// [`Kind::Refused`] where the file cannot be read or holds no certificate.
pub(crate) fn client_config(
    roots: Option<&Path>,
    verify_host: bool,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error.to_string()))?;
    let mut config = match (roots, verify_host) {
        (None, _) => builder
            .with_platform_verifier()
            .map_err(|error| refused(&format!("the platform's certificates: {error}")))?
            .with_no_client_auth(),
        (Some(path), true) => builder
            .with_root_certificates(load(path)?)
            .with_no_client_auth(),
        (Some(path), false) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ChainOnly {
                roots: load(path)?,
                provider,
            }))
            .with_no_client_auth(),
    };
    // PostgreSQL 17 asks for it with sslnegotiation=direct; older servers ignore it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn load(path: &Path) -> Result<RootCertStore, Error> {
    let trouble = |what: String| refused(&format!("root certificate {}: {what}", path.display()));
    let mut roots = RootCertStore::empty();
    let file = secret_file::open(path).map_err(|error| trouble(error.to_string()))?;
    let certificates = CertificateDer::pem_reader_iter(file);
    for certificate in certificates {
        let certificate = certificate.map_err(|error| trouble(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| trouble(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(trouble("the file holds no certificate in PEM".to_owned()));
    }
    Ok(roots)
}

fn refused(what: &str) -> Error {
    Error::new(Kind::Refused, "preparing TLS to Postgres", what)
}

/// `sslmode=verify-ca`: the chain must end at one of our roots; the host name is not looked at.
/// The price: any certificate of that authority passes for the server.
#[derive(Debug)]
struct ChainOnly {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
