package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one cluster. They are files in dir: NAME.crt and NAME.key,
// and NAME.conf for a client that authenticates at the API server.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
}

// identity is the content of a certificate.
type identity struct {
	name  string // of the files
	user  string // common name
	group string // organisation
	// addresses are those of a server certificate.
	addresses []netip.Addr
}

// newAuthority makes the cluster's certificate authority: ca.crt and ca.key.
func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{dir: dir, cert: template, key: key}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	return a, writePEM(a.file("ca.crt"), "CERTIFICATE", der)
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue writes a certificate and its key.
func (a *authority) issue(i identity) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", i.name, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: i.user},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if i.group != "" {
		template.Subject.Organization = []string{i.group}
	}
	for _, address := range i.addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	if len(i.addresses) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	key, err := a.newKey(i.name)
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", i.name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("issue certificate %s: %w", i.name, err)
	}
	return writePEM(a.file(i.name+".crt"), "CERTIFICATE", der)
}

// newKey writes NAME.key and NAME.pub.
func (a *authority) newKey(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return key, errors.Join(
		writePEM(a.file(name+".key"), "PRIVATE KEY", private),
		writePEM(a.file(name+".pub"), "PUBLIC KEY", public),
	)
}

func writePEM(file, kind string, der []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("write key or certificate: %w", err)
	}
	return nil
}

// kubeconfig issues a client certificate for the API server and writes NAME.conf.
func (a *authority) kubeconfig(i identity, server string) error {
	if err := a.issue(i); err != nil {
		return err
	}
	return a.writeKubeconfig(i.name, i.name+".conf", server)
}

// writeKubeconfig writes the kubeconfig of the client with the certificate NAME.
func (a *authority) writeKubeconfig(name, file, server string) error {
	type object = map[string]any
	files := map[string][]byte{}
	for _, file := range []string{"ca.crt", name + ".crt", name + ".key"} {
		data, err := os.ReadFile(a.file(file))
		if err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
		files[file] = data
	}
	return writeJSON(a.file(file), object{
		"apiVersion": "v1", "kind": "Config", "current-context": "mica",
		"clusters": []object{{"name": "mica", "cluster": object{
			"server": server, "certificate-authority-data": files["ca.crt"],
		}}},
		"users": []object{{"name": name, "user": object{
			"client-certificate-data": files[name+".crt"], "client-key-data": files[name+".key"],
		}}},
		"contexts": []object{{"name": "mica", "context": object{"cluster": "mica", "user": name}}},
	})
}

// writeJSON writes a file that only root may read. JSON is also valid YAML.
func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o711); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return nil
}
