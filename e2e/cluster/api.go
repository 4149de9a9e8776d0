package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// server is the address of the API server, the same on every node.
const server = "172.30.0.1:6443"

// connect makes a client of the API server.
func (c *Cluster) connect() error {
	pair, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
	if err != nil {
		return fmt.Errorf("connect to API server: %w", err)
	}
	authority, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		return fmt.Errorf("connect to API server: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	c.api = &http.Client{Transport: &http.Transport{
		DialContext:       c.Nodes[0].Dial,
		TLSClientConfig:   &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool},
		ForceAttemptHTTP2: true,
	}}
	return nil
}

func (c *Cluster) pki(name string) string { return filepath.Join(c.data(), "pki", name) }

// Get decodes the object at an API path, such as /api/v1/nodes, into v. The error is ErrNotFound if
// the object does not exist.
func (c *Cluster) Get(ctx context.Context, path string, v any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+path, nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	response, err := c.api.Do(request)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if response.StatusCode != http.StatusOK {
		var status metav1.Status
		_ = json.Unmarshal(body, &status) // not every error is a Status
		if response.StatusCode == http.StatusNotFound {
			return fmt.Errorf("get %s: %w: %s", path, ErrNotFound, status.Message)
		}
		return fmt.Errorf("get %s: %s: %s", path, response.Status, status.Message)
	}
	if text, ok := v.(*string); ok {
		*text = string(body)
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// WatchPods calls see for every change of the pods at an API path, beginning with the existing
// pods, until see returns true. It calls begun once no later change can be missed.
func (c *Cluster) WatchPods(ctx context.Context, path string, begun func(), see func(kind string, pod corev1.Pod) (done bool)) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+path+"?watch=1", nil)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	response, err := c.api.Do(request)
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("watch %s: %s", path, response.Status)
	}
	begun()
	for changes := json.NewDecoder(response.Body); ; {
		var change struct {
			Type   string
			Object corev1.Pod
		}
		if err := changes.Decode(&change); err != nil {
			return fmt.Errorf("watch %s: %w", path, err)
		}
		if see(change.Type, change.Object) {
			return nil
		}
	}
}

// ErrNotFound means that the API server has no such object.
var ErrNotFound = errors.New("not found")

// Kubectl runs kubectl as the cluster's administrator and returns its standard output.
func (c *Cluster) Kubectl(ctx context.Context, arguments ...string) (string, error) {
	return c.KubectlInput(ctx, "", arguments...)
}

// KubectlInput is Kubectl with a standard input.
func (c *Cluster) KubectlInput(ctx context.Context, input string, arguments ...string) (string, error) {
	command := c.KubectlCommand(ctx, arguments...)
	var out, problems bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(input), &out, &problems
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(problems.Bytes()))
	}
	return out.String(), nil
}

// KubectlCommand prepares kubectl on the first node.
func (c *Cluster) KubectlCommand(ctx context.Context, arguments ...string) *exec.Cmd {
	arguments = append([]string{"--kubeconfig", c.pki("admin.conf")}, arguments...)
	return c.Nodes[0].host.command(ctx, filepath.Join(c.Tools, "kubectl"), arguments...)
}
