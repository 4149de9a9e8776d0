package node

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/micarun/mica/internal/patience"
)

// The product's defaults for these settings, which suit a machine of usual speed.
const (
	startKeeper = 10 * time.Second
	askKeeper   = 30 * time.Second
)

// writeConfig writes the daemon's configuration and the registry mirror.
func (n *Node) writeConfig() error {
	certs := filepath.Join(n.Data, "certs.d")
	confDir := n.ConfDir
	if confDir == "" {
		confDir = filepath.Join(n.Data, "net.d")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "data_root = %q\nstate_dir = %q\n", n.Data, n.State)
	if n.OCIRuntime != "" {
		fmt.Fprintf(&b, "default_runtimes = [%q]\n", n.OCIRuntime)
	}
	fmt.Fprintf(&b, "\n[log]\nlevel = 2\n")
	fmt.Fprintf(&b, "\n[metrics]\naddress = %q\n", n.Metrics)
	fmt.Fprintf(&b, "\n[images]\ncerts_dirs = [%q]\n", certs)
	fmt.Fprintf(&b, "\n[pods]\ninit_binary = %q\n", filepath.Join(n.Bin, "mica-init"))
	if n.Criu != "" {
		fmt.Fprintf(&b, "criu = %q\n", n.Criu)
	}
	if n.ExecByRuntime {
		b.WriteString("exec_by_runtime = true\n")
	}
	if n.RestoreImages {
		b.WriteString("restore_images = true\n")
	}
	fmt.Fprintf(&b, "\n[keeper]\nbinary = %q\n", filepath.Join(n.Bin, "mica-keeper"))
	if start := patience.Of(startKeeper); start != startKeeper {
		fmt.Fprintf(&b, "start_timeout = %q\nrequest_timeout = %q\n", start, patience.Of(askKeeper))
	}
	fmt.Fprintf(&b, "\n[cgroups]\ndefault_parent = %q\n", filepath.Base(n.CgroupParent()))
	if n.CgroupDriver != "" {
		fmt.Fprintf(&b, "driver = %q\n", n.CgroupDriver)
	}
	fmt.Fprintf(&b, "\n[network]\nconf_dir = %q\n", confDir)
	if n.ConfDir == "" {
		fmt.Fprintf(&b, "\n[network.default]\nname = %q\nbridge = %q\nsubnet = %q\n", n.Name, n.Name, n.Subnet)
	}
	// The defaults would be the machine's paths, not this node's.
	plugins := filepath.Join(n.Data, "nri")
	fmt.Fprintf(&b, "\n[nri]\nsocket = %q\nplugin_path = %q\nplugin_config_path = %q\n", n.PluginSocket(), plugins, plugins+".conf.d")
	fmt.Fprintf(&b, "\n[cdi]\ndirs = [%q]\n", n.DeviceDir())
	fmt.Fprintf(&b, "\n[hooks]\ndirs = [%q]\n", n.HookDir())
	if err := os.MkdirAll(confDir, 0o755); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(n.Config(), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if n.Mirror == "" {
		return nil
	}
	return WriteMirror(certs, n.Mirror)
}

// freeAddress returns a loopback address that is currently unused.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

// WriteMirror writes a hosts.toml below dir, for containerd and Mica, that makes the registry at
// addr the only source of all images.
func WriteMirror(dir, addr string) error {
	file := filepath.Join(dir, "_default", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write mirror: %w", err)
	}
	content := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", addr)
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write mirror: %w", err)
	}
	return nil
}

// PluginSocket is where NRI plugins connect.
func (n *Node) PluginSocket() string { return filepath.Join(n.State, "nri.sock") }

// DeviceDir is the directory of CDI specifications, which need not exist.
func (n *Node) DeviceDir() string { return filepath.Join(n.Data, "cdi") }

// HookDir is the directory of OCI hooks, which need not exist.
func (n *Node) HookDir() string { return filepath.Join(n.Data, "hooks.d") }

// CgroupParent is the parent cgroup of the node's pods.
func (n *Node) CgroupParent() string {
	if n.CgroupDriver == "systemd" {
		// A dash in a slice's name means that it is a child of another slice.
		return "/" + strings.ReplaceAll(n.Name, "-", "_") + ".slice"
	}
	return "/" + n.Name
}
