package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/micarun/mica/runtimeservice/podns"
)

func TestSweep(t *testing.T) {
	n := newNode(t, nil)
	live, dead, rebooted, fresh := newPod(t), newPod(t), newPod(t), newPod(t)
	for i, pod := range []Pod{live, dead, rebooted} {
		pod.PortMappings = []PortMapping{{HostPort: int32(7000 + i), ContainerPort: 80}}
		_, err := n.Add(t.Context(), pod)
		must(t, err)
	}
	must(t, podns.Unpin(filepath.Dir(rebooted.NetNS)))
	// A lease whose record was lost in a power failure.
	d, err := n.opts.Default.complete(n.opts.CacheDir)
	must(t, err)
	orphan := filepath.Join(d.leases().Dir, d.Subnet.Addr().Next().Next().Next().Next().Next().Next().Next().Next().String())
	must(t, os.WriteFile(orphan, []byte(strings.Repeat("e", 64)+"\r\neth0"), 0o600))

	n.restart() // clears the claims of earlier pods
	_, err = n.Add(t.Context(), fresh)
	must(t, err)
	if held := n.leased(); len(held) != 5 {
		t.Fatalf("leases before GC: %v", held)
	}
	// The caller's list is older than the pod fresh.
	must(t, n.Sweep(t.Context(), []string{live.ID}))
	want := []string{live.ID + ".json", fresh.ID + ".json"}
	if diff := cmp.Diff(want, files(t, filepath.Join(n.opts.CacheDir, "attachments"))); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	if held := n.leased(); len(held) != 2 {
		t.Errorf("leases after GC: %v", held)
	}
	if rules := natRulesOf(t); !strings.Contains(rules, "7000") || strings.Contains(rules, "7001") || strings.Contains(rules, "7002") {
		t.Errorf("host ports after GC:\n%s", rules)
	}
	must(t, n.Check(t.Context(), fresh))
	if err := n.RemoveDefault(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("RemoveDefault under pods = %v", err)
	}
	must(t, n.Del(t.Context(), live))
	must(t, n.Del(t.Context(), fresh))
}

// An attachment that cannot be removed does not stop the rest.
func TestSweepGoesOn(t *testing.T) {
	n := newNode(t, nil)
	stuck, other := newPod(t), newPod(t)
	n.script("sticky", pass+fmt.Sprintf("; [ $CNI_COMMAND$CNI_CONTAINERID != DEL%s ] || exit 1", stuck.ID))
	n.configure("10.conflist", n.bridged("1.0.0", `{"type":"sticky"}`))
	for _, pod := range []Pod{stuck, other} {
		_, err := n.Add(t.Context(), pod)
		must(t, err)
	}
	n.restart()
	if err := n.Sweep(t.Context(), nil); err == nil || !strings.Contains(err.Error(), stuck.ID) || !strings.Contains(err.Error(), "plugin sticky") {
		t.Errorf("GC = %v", err)
	}
	if left := files(t, filepath.Join(n.opts.CacheDir, "attachments")); len(left) != 1 || !strings.HasPrefix(left[0], stuck.ID) {
		t.Errorf("attachments left: %v", left)
	}
	n.script("sticky", "")
	must(t, n.Sweep(t.Context(), nil))
}

// Plugins of CNI 1.1.0 get STATUS, and GC with the valid attachments; older plugins never get these
// commands.
func TestNewCommands(t *testing.T) {
	for _, version := range []string{"1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n := newNode(t, nil)
			log := n.script("modern", `case $CNI_COMMAND in
ADD) echo '{"cniVersion":"`+version+`","ips":[{"address":"10.1.2.3/24"}]}';;
STATUS) [ ! -e $log.down ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"agent is down"}'; exit 1; };;
esac`)
			n.configure("10.conflist", fmt.Sprintf(`{"cniVersion":%q,"name":"modern","plugins":[{"type":"modern"}]}`, version))
			live, dead := newPod(t), newPod(t)
			for _, pod := range []Pod{live, dead} {
				_, err := n.Add(t.Context(), pod)
				must(t, err)
			}
			for range 3 {
				must(t, n.Status(t.Context()))
			}
			n.restart()
			must(t, n.Sweep(t.Context(), []string{live.ID}))
			must(t, n.Del(t.Context(), live))
			want := "ADD ADD STATUS DEL GC DEL"
			if version == "1.0.0" {
				want = "ADD ADD DEL DEL"
			}
			if got := commands(t, log); got != want {
				t.Errorf("plugin saw %s, want %s", got, want)
			}
			if version == "1.0.0" {
				return
			}
			var input map[string]any
			must(t, json.Unmarshal([]byte(read(t, log+".GC")), &input))
			valid := []any{map[string]any{"containerID": live.ID, "ifname": "eth0"}}
			if diff := cmp.Diff(valid, input["cni.dev/valid-attachments"]); diff != "" {
				t.Errorf("valid attachments (-want +got):\n%s", diff)
			}
			must(t, os.WriteFile(log+".down", nil, 0o600))
			if err := n.Status(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "plugin modern: STATUS: agent is down") {
				t.Errorf("Status = %v", err)
			}
		})
	}
}

func TestLeftoversAreFoundWithoutBeingOpen(t *testing.T) {
	n := newNode(t, nil)
	first, _ := n.attached()
	second, address := n.attached()
	leftovers := func(live ...string) []string {
		t.Helper()
		found, err := n.opts.Leftovers(live)
		must(t, err)
		var paths []string
		for _, s := range found {
			paths = append(paths, filepath.Base(s.Path))
		}
		return paths
	}
	if got := leftovers(first.ID, second.ID); got != nil {
		t.Errorf("leftovers of live pods: %q", got)
	}
	want := []string{second.ID + ".json", address.String()}
	if diff := cmp.Diff(want, leftovers(first.ID)); diff != "" {
		t.Errorf("leftovers of a removed pod (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, leftovers(first.ID)); diff != "" {
		t.Errorf("the first call changed something (-want +got):\n%s", diff)
	}
	must(t, n.Del(t.Context(), second))
	if got := leftovers(first.ID); got != nil {
		t.Errorf("leftovers of a detached pod: %q", got)
	}
}
