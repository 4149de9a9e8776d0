package network

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// dropResults removes libcni's cached results of a pod.
func (n *node) dropResults(id string) {
	n.t.Helper()
	found, err := filepath.Glob(filepath.Join(n.opts.CacheDir, "results", "*"+id+"*"))
	must(n.t, err)
	for _, path := range found {
		must(n.t, os.Remove(path))
	}
}

func TestRepairOfALostAttachment(t *testing.T) {
	n := newNode(t, nil)
	pod := newPod(t)
	got, err := n.Add(t.Context(), pod)
	must(t, err)
	d, err := n.opts.Default.complete(n.opts.CacheDir)
	must(t, err)
	lease := d.leases().Path(got.IPs[0])
	for _, row := range []struct {
		name string
		take func()
	}{
		{"record", func() { must(t, os.Remove(n.records.path(pod.ID))) }},
		{"torn record", func() { must(t, os.Truncate(n.records.path(pod.ID), 10)) }},
		{"lease", func() { must(t, os.Remove(lease)) }},
		// The last row: a repair does not bring the cached result back.
		{"record and result", func() { must(t, os.Remove(n.records.path(pod.ID))); n.dropResults(pod.ID) }},
	} {
		name := row.name
		row.take()
		if what := n.Lacks(pod.ID); what == "" {
			t.Errorf("Lacks reports nothing without the %s", name)
		}
		result, err := n.Repair(t.Context(), pod)
		if err != nil || len(result.IPs) == 0 || result.IPs[0] != got.IPs[0] {
			t.Errorf("without its %s: Repair = %v, %v, want the address %s", name, result.IPs, err, got.IPs[0])
		}
		if what := n.Lacks(pod.ID); what != "" {
			t.Errorf("after the repair of the %s, Lacks reports the %s", name, what)
		}
	}
	must(t, os.WriteFile(lease, []byte("another\r\neth0"), 0o600))
	if _, err := n.Repair(t.Context(), pod); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Repair of a pod whose address is leased to another pod = %v", err)
	}
	must(t, os.WriteFile(lease, []byte(pod.ID+"\r\neth0"), 0o600))
	must(t, n.Del(t.Context(), pod))
}

// Del detaches a pod whose files are all lost but whose namespace exists.
func TestDelOfAPodWithoutFiles(t *testing.T) {
	n := newNode(t, nil)
	pod := newPod(t)
	pod.PortMappings = []PortMapping{{HostPort: 7100, ContainerPort: 80}}
	_, err := n.Add(t.Context(), pod)
	must(t, err)
	must(t, os.Remove(n.records.path(pod.ID)))
	n.dropResults(pod.ID)
	n.restart()
	must(t, n.Del(t.Context(), pod))
	if held := n.leased(); len(held) > 0 {
		t.Errorf("leases: %v", held)
	}
	if rules := natRulesOf(t); strings.Contains(rules, pod.ID) {
		t.Errorf("host ports:\n%s", rules)
	}
}

func TestRulesOfPodsThatAreGone(t *testing.T) {
	gone, live := ruleOwner{"net", "gone"}, ruleOwner{"net", "live"}
	c, dn, kept := gone.chains()[0], gone.chains()[1], live.chains()[0]
	table := []string{
		"*nat", ":POSTROUTING ACCEPT [0:0]", ":" + c + " - [0:0]", ":" + dn + " - [0:0]", ":" + kept + " - [0:0]", ":CNI-HOSTPORT-DNAT - [0:0]",
		`-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"net\" id: \"gone\"" -j ` + c,
		`-A POSTROUTING -s 10.1.0.3/32 -m comment --comment "name: \"net\" id: \"live\"" -j ` + kept,
		`-A POSTROUTING -s 10.2.0.3/32 -m comment --comment "name: \"foreign\" id: \"gone\"" -j CNI-0123`,
		`-A ` + c + ` -d 10.1.0.0/24 -m comment --comment "name: \"net\" id: \"gone\"" -j ACCEPT`,
		`-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"gone\"" -m multiport --dports 7000 -j ` + dn,
		"COMMIT",
	}
	leftovers := leftoverRules(table, []string{"net"}, func(id string) bool { return id == "live" })
	if diff := cmp.Diff([]string{"net/gone"}, names(leftovers)); diff != "" {
		t.Errorf("owners (-want +got):\n%s", diff)
	}
	want := strings.Join([]string{
		"*nat",
		`-D POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"net\" id: \"gone\"" -j ` + c,
		`-D CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"gone\"" -m multiport --dports 7000 -j ` + dn,
		"-F " + c, "-F " + dn, "-X " + c, "-X " + dn, "COMMIT", "",
	}, "\n")
	if diff := cmp.Diff(want, removal(table, leftovers)); diff != "" {
		t.Errorf("removal (-want +got):\n%s", diff)
	}
}

func names(owners []ruleOwner) []string {
	var all []string
	for _, o := range owners {
		all = append(all, o.network+"/"+o.id)
	}
	return all
}

// Del first kills plugins of a killed daemon, but keeps what a completed ADD left running.
func TestPluginsOfAKilledDaemonEnd(t *testing.T) {
	n := newNode(t, nil)
	attached, half := newPod(t), newPod(t)
	_, err := n.Add(t.Context(), attached)
	must(t, err)
	must(t, n.records.write(record{PodID: half.ID, Interface: podInterface, NetNS: half.NetNS, Config: n.current().list.Bytes}))
	helper, add, del := n.plugin(attached, "ADD"), n.plugin(half, "ADD"), n.plugin(attached, "DEL")
	foreign := exec.Command("sleep", "1000")
	foreign.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + half.ID, markVariable + "=/elsewhere"}
	must(t, foreign.Start())
	t.Cleanup(func() { _ = foreign.Process.Kill(); _ = foreign.Wait() })
	n.restart()
	must(t, n.Del(t.Context(), half))
	must(t, n.Del(t.Context(), attached))
	for name, p := range map[string]struct {
		cmd  *exec.Cmd
		ends bool
	}{"helper of an attached pod": {helper, false}, "ADD that was interrupted": {add, true}, "DEL that was interrupted": {del, true}, "plugin of another network": {foreign, false}} {
		if ended := ended(t, p.cmd); ended != p.ends {
			t.Errorf("%s: ended is %v", name, ended)
		}
	}
}

// plugin starts a process that looks like a plugin of an earlier daemon.
func (n *node) plugin(pod Pod, command string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + pod.ID, markVariable + "=" + n.opts.CacheDir}
	must(n.t, cmd.Start())
	n.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func ended(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	var info unix.Siginfo
	must(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil))
	return info.Signo != 0
}
