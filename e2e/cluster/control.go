package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// controlPlane lists the programs of the control plane in the order in which they are stopped.
func controlPlane() []string {
	return []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"}
}

// spawn starts a program on the node, which keeps running when this process ends. Its log is
// NAME.log in the node's log directory.
func (n *Node) spawn(program string, arguments ...string) error {
	return n.spawnBy(nil, program, arguments...)
}

// spawnBy is spawn with a command line in front that prepares the environment and then executes the
// program.
//
//nolint:contextcheck // the program outlives the call
func (n *Node) spawnBy(by []string, program string, arguments ...string) error {
	if err := os.MkdirAll(n.logs(), 0o711); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	log, err := os.OpenFile(n.Log(filepath.Base(program)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	defer log.Close()
	line := slices.Concat(by, []string{program}, arguments)
	command := n.host.command(context.Background(), line[0], line[1:]...)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = command.Wait() // the log shows how it ended
	}()
	n.ended[filepath.Base(program)] = ended
	return nil
}

// awaitService waits until check succeeds or the program, which this process started, has ended.
func (n *Node) awaitService(ctx context.Context, program string, check func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if ended, ok := n.ended[program]; ok {
		go func() {
			select {
			case <-ended:
				cancel(errors.New("it ended"))
			case <-ctx.Done():
			}
		}()
	}
	if err := Await(ctx, program, check); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// startControlPlane writes the certificates and starts the control plane on the first node.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.issueCertificates(); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	n := c.Nodes[0]
	if err := n.spawn(filepath.Join(c.Tools, "etcd"), flags(map[string]string{
		"name": n.Name, "data-dir": filepath.Join(c.data(), "etcd"), "unsafe-no-fsync": "true", "log-level": "warn",
		"listen-client-urls": "http://127.0.0.1:2379", "advertise-client-urls": "http://127.0.0.1:2379",
		"listen-peer-urls": "http://127.0.0.1:2380", "initial-advertise-peer-urls": "http://127.0.0.1:2380",
		"initial-cluster": n.Name + "=http://127.0.0.1:2380",
	})...); err != nil {
		return err
	}
	if err := n.spawn(filepath.Join(c.Tools, "kube-apiserver"), c.apiserverFlags()...); err != nil {
		return err
	}
	if err := n.awaitService(ctx, "kube-apiserver", func(ctx context.Context) error {
		var answer string
		return c.Get(ctx, "/readyz", &answer)
	}); err != nil {
		return err
	}
	return errors.Join(
		n.spawn(filepath.Join(c.Tools, "kube-controller-manager"), flags(map[string]string{
			"kubeconfig": c.pki("controller-manager.conf"), "leader-elect": "false", "bind-address": "127.0.0.1",
			"use-service-account-credentials": "true", "root-ca-file": c.pki("ca.crt"),
			"service-account-private-key-file": c.pki("accounts.key"),
			"allocate-node-cidrs":              "true", "cluster-cidr": podNetwork, "node-cidr-mask-size": "24",
			"service-cluster-ip-range": serviceNetwork, "cert-dir": filepath.Join(c.data(), "generated"),
		})...),
		n.spawn(filepath.Join(c.Tools, "kube-scheduler"), flags(map[string]string{
			"kubeconfig": c.pki("scheduler.conf"), "leader-elect": "false", "bind-address": "127.0.0.1",
		})...),
	)
}

func (c *Cluster) apiserverFlags() []string {
	return flags(map[string]string{
		"etcd-servers": "http://127.0.0.1:2379", "secure-port": "6443", "bind-address": "0.0.0.0",
		"advertise-address": c.Nodes[0].IP.String(), "service-cluster-ip-range": serviceNetwork,
		"authorization-mode": "Node,RBAC", "enable-admission-plugins": "NodeRestriction",
		"client-ca-file": c.pki("ca.crt"), "tls-cert-file": c.pki("apiserver.crt"), "tls-private-key-file": c.pki("apiserver.key"),
		"kubelet-certificate-authority": c.pki("ca.crt"), "kubelet-preferred-address-types": "InternalIP",
		"kubelet-client-certificate": c.pki("admin.crt"), "kubelet-client-key": c.pki("admin.key"),
		"service-account-issuer":   "https://kubernetes.default.svc",
		"service-account-key-file": c.pki("accounts.pub"), "service-account-signing-key-file": c.pki("accounts.key"),
		"allow-privileged": "true", "endpoint-reconciler-type": "lease", "cert-dir": filepath.Join(c.data(), "generated"),
	})
}

// flags returns a program's flags.
func flags(values map[string]string) []string {
	var list []string
	for name, value := range values {
		list = append(list, "--"+name+"="+value)
	}
	return list
}

// issueCertificates writes all certificates, keys and kubeconfigs.
func (c *Cluster) issueCertificates() error {
	a, err := newAuthority(filepath.Join(c.data(), "pki"))
	if err != nil {
		return err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	errs := []error{a.issue(identity{
		name: "apiserver", user: "kube-apiserver",
		addresses: []netip.Addr{loopback, nodeAddress(0), netip.MustParseAddr(apiService)},
	})}
	_, err = a.newKey("accounts")
	errs = append(errs, err)
	for _, client := range []identity{
		{name: "admin", user: "kubernetes-admin", group: "system:masters"},
		{name: "controller-manager", user: "system:kube-controller-manager"},
		{name: "scheduler", user: "system:kube-scheduler"},
		{name: "proxy", user: "system:kube-proxy"},
	} {
		errs = append(errs, a.kubeconfig(client, "https://"+server))
	}
	// A kubelet is a client of the API server and also a server for it.
	for index := range c.Size {
		name := nodeName(index)
		errs = append(errs, a.kubeconfig(identity{
			name: name, user: "system:node:" + name, group: "system:nodes",
			addresses: []netip.Addr{nodeAddress(index)},
		}, "https://"+server))
	}
	return errors.Join(errs...)
}

// LogTails returns the last lines of every log of the cluster.
func (c *Cluster) LogTails(lines int) string {
	files, _ := filepath.Glob(filepath.Join(c.data(), "*", "log", "*.log")) // the pattern is valid
	var b strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		fmt.Fprintf(&b, "== %s\n%s\n", file, strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
	return b.String()
}
