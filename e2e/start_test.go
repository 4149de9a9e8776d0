package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/micarun/mica/e2e/node"
	"github.com/micarun/mica/internal/patience"
)

// serveLimit bounds the time until a daemon serves, as the daemon logs it.
const serveLimit = 2 * time.Second

// victim is a pod with one running container, of which the test removes a part.
type victim struct {
	pod
	container string
	image     string // its ID
	pid       int
}

// damage is a part of a pod that a test removes while no daemon runs.
type damage struct {
	name   string
	config func(*runtimeapi.PodSandboxConfig) // nil for a default pod
	image  string                             // "" for busyboxImage, which the undamaged pod uses
	remove func(f *fixture, v victim) error
}

func remove(path func(f *fixture, v victim) string) func(*fixture, victim) error {
	return func(f *fixture, v victim) error {
		found, err := filepath.Glob(path(f, v))
		if err != nil || len(found) == 0 {
			return fmt.Errorf("%s does not exist: %w", path(f, v), err)
		}
		for _, name := range found {
			if err := os.RemoveAll(name); err != nil {
				return err
			}
		}
		return nil
	}
}

func detach(path func(f *fixture, v victim) string) func(*fixture, victim) error {
	return func(f *fixture, v victim) error { return unix.Unmount(path(f, v), unix.MNT_DETACH) }
}

func truncate(path func(f *fixture, v victim) string) func(*fixture, victim) error {
	return func(f *fixture, v victim) error {
		info, err := os.Stat(path(f, v))
		if err != nil {
			return err
		}
		return os.Truncate(path(f, v), info.Size()/2)
	}
}

func inPod(name string) func(*fixture, victim) string {
	return func(f *fixture, v victim) string { return filepath.Join(f.State, "pods", v.id, name) }
}

func podRecord(name string) func(*fixture, victim) string {
	return func(f *fixture, v victim) string { return filepath.Join(f.Data, "cri", "pods", v.id, name) }
}

func containerRecord(name string) func(*fixture, victim) string {
	return func(f *fixture, v victim) string {
		return filepath.Join(f.Data, "cri", "containers", v.container, name)
	}
}

// writableLayer returns the directory of the container's writable layer.
func writableLayer(f *fixture, v victim) string {
	id, err := os.ReadFile(filepath.Join(f.Data, "image/overlay2/layerdb/mounts", v.container, "mount-id"))
	if err != nil {
		return err.Error()
	}
	return filepath.Join(f.Data, "overlay2", string(id))
}

// topLayer returns the layerdb entry of the container's uppermost image layer.
func topLayer(f *fixture, v victim) string {
	db := filepath.Join(f.Data, "image/overlay2/layerdb")
	chain, err := os.ReadFile(filepath.Join(db, "mounts", v.container, "parent"))
	if err != nil {
		return err.Error()
	}
	return filepath.Join(db, strings.ReplaceAll(string(chain), ":", "/"))
}

// leaveCgroups moves the container's processes to the root cgroups, and removes the cgroups below
// path.
func leaveCgroups(path func(f *fixture, v victim) string) func(*fixture, victim) error {
	return func(f *fixture, v victim) error {
		roots, _ := filepath.Glob("/sys/fs/cgroup/*")
		for _, root := range append(roots, "/sys/fs/cgroup") {
			dir := filepath.Join(root, path(f, v))
			if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
				continue
			}
			// The process leaves all cgroups below.
			if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(v.pid)), 0); err != nil {
				return err
			}
			inner, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
			for _, procs := range append(inner, filepath.Join(dir, "cgroup.procs")) {
				if err := unix.Rmdir(filepath.Dir(procs)); err != nil {
					return fmt.Errorf("remove %s: %w", filepath.Dir(procs), err)
				}
			}
		}
		return nil
	}
}

func (f *fixture) podCgroup(v victim) string { return filepath.Join(f.CgroupParent(), v.id) }

func sharePIDs(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}}
}

// damages lists every part of a running pod.
func damages() []damage {
	list := []damage{
		{name: "net pin", remove: detach(inPod("net"))},
		{name: "ipc pin", remove: detach(inPod("ipc"))},
		{name: "uts pin", remove: detach(inPod("uts"))},
		{name: "pid pin", config: sharePIDs, remove: detach(inPod("pid"))},
		{name: "shared memory", remove: detach(inPod("shm"))},
		{name: "root filesystem's mount", remove: detach(func(f *fixture, v victim) string { return filepath.Join(writableLayer(f, v), "merged") })},
		{name: "pod's cgroup", remove: leaveCgroups((*fixture).podCgroup)},
		{name: "cgroup of the pod's init", config: sharePIDs, remove: leaveCgroups(func(f *fixture, v victim) string { return filepath.Join(f.podCgroup(v), "init") })},
		{name: "container's cgroup", remove: leaveCgroups(func(f *fixture, v victim) string { return filepath.Join(f.podCgroup(v), v.container) })},
		{name: "pod's directory", remove: remove(podRecord(""))},
		{name: "container's directory", remove: remove(containerRecord(""))},
		{name: "truncated pod record", remove: truncate(podRecord("record.json"))},
		{name: "truncated container record", remove: truncate(containerRecord("record.json"))},
		{name: "truncated pod state", remove: truncate(podRecord("state.json"))},
		{name: "truncated container state", remove: truncate(containerRecord("state.json"))},
		{name: "log", remove: func(_ *fixture, v victim) error { return os.RemoveAll(v.config.LogDirectory) }},
		{name: "keeper's record", remove: remove(func(f *fixture, v victim) string { return filepath.Join(f.State, "keeper", v.container) })},
		{name: "lease", remove: func(f *fixture, v victim) error {
			files, _ := filepath.Glob(filepath.Join(f.Data, "network/leases/*/*.*.*.*"))
			for _, file := range files {
				if data, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(data), v.id) {
					return os.Remove(file)
				}
			}
			return fmt.Errorf("no lease of %s", v.id)
		}},
		{name: "attachment's record", remove: remove(func(f *fixture, v victim) string { return filepath.Join(f.Data, "network/attachments", v.id+".json") })},
		{name: "attachment's result", remove: remove(func(f *fixture, v victim) string { return filepath.Join(f.Data, "network/results", "*"+v.id+"*") })},
		{name: "bundle", remove: remove(func(f *fixture, v victim) string { return filepath.Join(f.State, "containers", v.container) })},
		{name: "config.json", remove: remove(func(f *fixture, v victim) string {
			return filepath.Join(f.State, "containers", v.container, "config.json")
		})},
		{name: "OCI runtime's state", remove: remove(func(f *fixture, v victim) string { return filepath.Join(f.State, "runtimes/*", v.container) })},
		{name: "writable layer's directory", remove: func(f *fixture, v victim) error {
			dir := writableLayer(f, v)
			_ = unix.Unmount(filepath.Join(dir, "merged"), unix.MNT_DETACH)
			return os.RemoveAll(dir)
		}},
		{name: "writable layer's entry", remove: remove(func(f *fixture, v victim) string {
			return filepath.Join(f.Data, "image/overlay2/layerdb/mounts", v.container)
		})},
	}
	list = append(list, imageDamages()...)
	for _, name := range []string{"record.json", "state.json"} {
		list = append(list, damage{name: "pod's " + name, remove: remove(podRecord(name))},
			damage{name: "container's " + name, remove: remove(containerRecord(name))})
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		list = append(list, damage{name: name, remove: remove(inPod("etc/" + name))})
	}
	list = append(list, damage{name: "mount of the files", remove: detach(inPod("etc"))})
	return list
}

// imageDamages lists the parts of a running pod's image.
func imageDamages() []damage {
	return []damage{
		{name: "image's configuration", image: "registry.test/mica/busybox:index", remove: remove(func(f *fixture, v victim) string {
			return filepath.Join(f.Data, "image/overlay2/imagedb/content", strings.ReplaceAll(v.image, ":", "/"))
		})},
		{name: "image's layer entry", image: "registry.test/mica/busybox:dockerindex", remove: remove(topLayer)},
		{name: "image's layer directory", image: "registry.test/mica/layers40:latest", remove: func(f *fixture, v victim) error {
			id, err := os.ReadFile(filepath.Join(topLayer(f, v), "cache-id"))
			if err != nil {
				return err
			}
			return os.RemoveAll(filepath.Join(f.Data, "overlay2", string(id)))
		}},
	}
}

// A killed daemon starts again while each of many pods has lost a different part. The daemon serves
// without delay. An undamaged pod keeps running; each of the others is repaired or torn down, and
// can be stopped and removed without leftovers.
func TestStartWithDamagedPods(t *testing.T) {
	f := start(t)
	list := damages()
	victims := make([]victim, len(list))
	for i, d := range list {
		victims[i] = f.victimOf(cmp.Or(d.image, busyboxImage), d.config)
	}
	whole := f.victim(nil)
	f.no(f.Kill())
	for i, d := range list {
		if err := d.remove(f, victims[i]); err != nil {
			t.Fatalf("remove %s: %v", d.name, err)
		}
	}
	_, err := f.Node.StartDaemon(f.ctx)
	f.no(err)
	t.Logf("serving after %s, with %d damaged pods of %d", f.servedAfter(), len(list), len(list)+1)
	f.checkServedAfter()
	f.checkUntouched(whole)
	f.checkUnusable()
	f.no(f.awaitRecovered(f.ctx))
	// The check names whatever was not repaired or torn down.
	out, _ := f.Mica(f.ctx, "check")
	for i, d := range list {
		v := victims[i]
		fate := f.fate(v)
		t.Logf("%-28s %s", d.name, fate)
		if named := strings.Contains(out, v.id) || strings.Contains(out, v.container); named && !staysDamaged(d.name) {
			t.Errorf("without its %s, the check still names the pod: %s", d.name, out)
		}
		if kept := exists(filepath.Join(f.Data, "image/overlay2/layerdb/mounts", v.container)); strings.HasPrefix(d.name, "truncated") && !kept {
			t.Errorf("with a %s the container's writable layer is deleted", d.name)
		}
		if strings.Contains(fate, "exec fails") {
			t.Errorf("without its %s: %s", d.name, fate)
		}
		f.no(f.Runtime.StopContainer(f.ctx, v.container, 0))
		f.no(f.Runtime.RemoveContainer(f.ctx, v.container))
		f.no(f.RemovePod(f.ctx, v.id))
	}
	// A pull repairs the images, and the next start removes the layers that it has replaced.
	for _, d := range imageDamages() {
		v := f.victimOf(d.image, nil)
		f.checkUntouched(v)
		f.no(f.RemovePod(f.ctx, v.id))
	}
	f.no(f.StopDaemon())
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	f.checkUntouched(whole)
}

// staysDamaged reports whether the daemon leaves the damage, and the check names it, until the pod is
// removed.
func staysDamaged(name string) bool {
	return slices.ContainsFunc([]string{"truncated", "writable layer", "image's layer"}, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// checkUnusable checks that the node reports three unusable records: a pod's, its container's, and
// another container's.
func (f *fixture) checkUnusable() {
	f.t.Helper()
	count, err := f.Metric(f.ctx, "mica_unusable_records")
	f.no(err)
	if count != 3 {
		f.t.Errorf("mica_unusable_records is %v, want 3", count)
	}
	status, err := f.Runtime.Status(f.ctx, false)
	f.no(err)
	for _, c := range status.Status.Conditions {
		if c.Type == "RecordsUsable" && !c.Status && strings.HasPrefix(c.Message, "3 records cannot be used") {
			return
		}
	}
	f.t.Errorf("conditions do not mention unusable records: %v", status.Status.Conditions)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// A pod lost its network namespace while no daemon ran, and its container keeps running. This
// delays nothing.
func TestStartWithLostNamespace(t *testing.T) {
	f := start(t)
	v, whole := f.victim(nil), f.victim(nil)
	f.no(f.Kill())
	f.no(unix.Unmount(inPod("net")(f, v), unix.MNT_DETACH))
	_, err := f.Node.StartDaemon(f.ctx)
	f.no(err)
	f.checkServedAfter()
	f.checkUntouched(whole)
	if status := f.await(v.container); status.ExitCode == 0 {
		t.Errorf("the container of the pod without a namespace ended with %d", status.ExitCode)
	}
}

// The network plugin hangs when the starting daemon tears down one pod. The daemon serves in the
// meantime and shows the stage, also in errors of calls for that pod, and creates and removes other
// pods.
func TestStartWithHangingPlugin(t *testing.T) {
	f := startHanging(t)
	v := f.victim(nil)
	f.no(f.Kill())
	f.no(unix.Unmount(inPod("uts")(f, v), unix.MNT_DETACH))
	f.no(os.WriteFile(filepath.Join(f.Data, "hang"), []byte(v.id), 0o644))
	_, err := f.Node.StartDaemon(f.ctx)
	f.no(err)
	t.Logf("serving after %s", f.servedAfter())
	status, err := f.Runtime.Status(f.ctx, false)
	f.no(err)
	if ready := status.Status.Conditions[0]; !ready.Status || ready.Reason != "Recovering" {
		t.Errorf("condition while a pod is recovered: %v", ready)
	}
	list, err := f.Runtime.ListPodSandbox(f.ctx, nil)
	f.no(err)
	if len(list) != 1 || list[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("pods in the first answer: %v", list)
	}
	f.eventually("mica events shows the recovery with its stage", func() bool {
		out, err := f.Mica(f.ctx, "events", "--running")
		f.no(err)
		return strings.Contains(out, "recover pod") && strings.Contains(out, "now: delete network")
	})
	short, cancel := context.WithTimeout(f.ctx, time.Second)
	defer cancel()
	client, err := grpc.NewClient("unix://"+f.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.no(err)
	defer client.Close()
	_, err = runtimeapi.NewRuntimeServiceClient(client).RunPodSandbox(short, &runtimeapi.RunPodSandboxRequest{Config: v.config})
	if err == nil {
		t.Error("RunPodSandbox succeeds while the first pod of that name is being torn down")
	}
	other := f.runPod(f.podConfig())
	f.no(f.RemovePod(f.ctx, other.id))
	f.no(os.Remove(filepath.Join(f.Data, "hang")))
	f.no(f.RemovePod(f.ctx, v.id))
}

// A daemon is killed while a network plugin adds a pod. The plugin and its child processes end
// before the next daemon runs the plugin's DEL.
func TestDaemonKilledDuringPluginAdd(t *testing.T) {
	f := startHanging(t)
	f.no(os.WriteFile(filepath.Join(f.Data, "hang-add"), nil, 0o644))
	client := f.Runtime
	go func() { _, _ = client.RunPodSandbox(f.ctx, f.podConfig(), "") }()
	child := func(line string) bool { return strings.Contains(line, "child of ADD") }
	f.eventually("the plugin's child runs", func() bool { return slices.ContainsFunc(f.plugins(), child) })
	f.no(f.Kill())
	f.no(os.Remove(filepath.Join(f.Data, "hang-add")))
	_, err := f.StartDaemon(f.ctx)
	f.no(err)
	f.no(f.awaitCheck(f.ctx))
	// A plugin that is only asked for its versions may run; an interrupted ADD would remain.
	f.eventually("no plugin runs", func() bool { return len(f.plugins()) == 0 })
}

// If the record of a pod with ipMasq is lost, its rules are removed with the pod. For a pod without
// any file, the check reports the rules and the next start removes them.
func TestRulesOfALostPod(t *testing.T) {
	f := startOn(t, func(o *node.Options) {
		o.ConfDir = filepath.Join(o.Data, "own.d")
		conf := `{"cniVersion": "1.0.0", "name": "` + o.Name + `", "plugins": [
			{"type": "bridge", "bridge": "` + o.Name + `", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "` + o.Data + `/network/leases",
				"ranges": [[{"subnet": "` + o.Subnet.String() + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
			{"type": "portmap", "capabilities": {"portMappings": true}}]}`
		if err := errors.Join(os.MkdirAll(o.ConfDir, 0o755), os.WriteFile(filepath.Join(o.ConfDir, "10.conflist"), []byte(conf), 0o644)); err != nil {
			t.Fatal(err)
		}
	})
	ports := func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: int32(f.freePort())}}
	}
	lost, altogether, whole := f.victim(ports), f.victim(ports), f.victim(ports)
	f.no(f.Kill())
	f.no(os.RemoveAll(podRecord("")(f, lost)))
	for _, path := range []string{podRecord("")(f, altogether), filepath.Join(f.Data, "network/attachments", altogether.id+".json")} {
		f.no(os.RemoveAll(path))
	}
	results, err := filepath.Glob(filepath.Join(f.Data, "network/results/*"+altogether.id+"*"))
	f.no(err)
	for _, r := range results {
		f.no(os.Remove(r))
	}
	f.no(unix.Unmount(inPod("net")(f, altogether), unix.MNT_DETACH))
	_, err = f.StartDaemon(f.ctx)
	f.no(err)
	f.no(f.awaitCheck(f.ctx))
	census, err := f.Census(f.ctx)
	f.no(err)
	rules := strings.Join(census["rule"], "\n")
	for name, v := range map[string]victim{"pod without a record": lost, "pod without any file": altogether} {
		if strings.Contains(rules, v.id) {
			t.Errorf("%s: rules are left: %s", name, rules)
		}
	}
	if !strings.Contains(rules, whole.id) {
		t.Errorf("rules of an undamaged pod were removed: %s", rules)
	}
	// A rule of plugin bridge for a pod that this node does not have.
	unknown := strings.Repeat("5", 64)
	rule := []string{"POSTROUTING", "-s", f.Subnet.Addr().Next().Next().String() + "/32", "-m", "comment", "--comment", `name: "` + f.Name + `" id: "` + unknown + `"`, "-j", "RETURN"}
	f.no(exec.Command("iptables", append([]string{"-w", "5", "-t", "nat", "-A"}, rule...)...).Run())
	t.Cleanup(func() { _ = exec.Command("iptables", append([]string{"-w", "5", "-t", "nat", "-D"}, rule...)...).Run() })
	if out, err := f.Mica(f.ctx, "check"); err == nil || !strings.Contains(out, unknown) {
		t.Errorf("check does not name a rule without a pod: %v: %s", err, out)
	}
	f.no(exec.Command("iptables", append([]string{"-w", "5", "-t", "nat", "-D"}, rule...)...).Run())
}

// startHanging starts a node whose network has a plugin that hangs on demand. The plugin has a
// child in another session.
func startHanging(t *testing.T) *fixture {
	return startOn(t, func(o *node.Options) {
		o.ConfDir = filepath.Join(o.Data, "own.d")
		bin := filepath.Join(o.Data, "plugins")
		conf := `{"cniVersion": "1.0.0", "name": "` + o.Name + `", "plugins": [
			{"type": "bridge", "bridge": "` + o.Name + `", "isGateway": true, "ipam": {"type": "host-local", "dataDir": "` + o.Data + `/network/leases",
				"ranges": [[{"subnet": "` + o.Subnet.String() + `"}]]}},
			{"type": "hanging"}]}`
		hanging := `#!/bin/sh
# The result of the plugin before is the answer.
input=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID" >>` + o.Data + `/calls
if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'; exit; fi
if [ "$CNI_COMMAND" = ADD ] && [ -e ` + o.Data + `/hang-add ]; then
	setsid sh -c 'while [ -e ` + o.Data + `/calls ]; do sleep 0.1; done # child of ADD' </dev/null >/dev/null 2>&1 &
	sleep 1000
fi
while [ "$CNI_COMMAND" = DEL ] && [ "$(cat ` + o.Data + `/hang 2>/dev/null)" = "$CNI_CONTAINERID" ]; do sleep 0.1; done
if [ "$CNI_COMMAND" = ADD ]; then printf '%s' "$input" | sed 's/.*"prevResult"://; s/,"type":"hanging".*//' ; fi
`
		extra := "[network]\nbin_dirs = [\"" + bin + "\", \"/opt/cni/bin\", \"/usr/lib/cni\"]\n"
		for path, text := range map[string]string{filepath.Join(o.ConfDir, "10.conflist"): conf, filepath.Join(bin, "hanging"): hanging, filepath.Join(o.Data, "conf.d", "plugins.toml"): extra} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// plugins returns the command lines of running processes of the hanging plugin.
func (f *fixture) plugins() []string {
	f.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	f.no(err)
	var found []string
	for _, file := range files {
		line, _ := os.ReadFile(file)
		if text := strings.ReplaceAll(string(line), "\x00", " "); strings.Contains(text, f.Data+"/plugins/") || strings.Contains(text, f.Data+"/calls") {
			found = append(found, text)
		}
	}
	return found
}

// servedAfter returns the time from the daemon's start to its first answer, as the daemon logs it.
func (f *fixture) servedAfter() time.Duration {
	f.t.Helper()
	var took time.Duration
	f.eventually("the daemon logs when it serves", func() bool {
		out, err := f.Mica(f.ctx, "info")
		f.no(err)
		_, after, _ := strings.Cut(out, "ready after ")
		text, _, _ := strings.Cut(after, "\n")
		took, err = time.ParseDuration(strings.TrimSpace(text))
		return err == nil && took > 0
	})
	return took
}

// checkServedAfter fails the test if the daemon has served later than it promises. The promise is for
// the daemon as it is shipped: with the race detector it takes many times the time.
func (f *fixture) checkServedAfter() {
	f.t.Helper()
	if os.Getenv(raceEnv) != "" {
		return
	}
	if served, limit := f.servedAfter(), patience.Of(serveLimit); served > limit {
		f.t.Errorf("serving after %s, not within %s", served, limit)
	}
}

// victim runs a pod with a container.
func (f *fixture) victim(change func(*runtimeapi.PodSandboxConfig)) victim {
	f.t.Helper()
	return f.victimOf(busyboxImage, change)
}

// victimOf is victim with another image.
func (f *fixture) victimOf(image string, change func(*runtimeapi.PodSandboxConfig)) victim {
	f.t.Helper()
	config := f.podConfig()
	container := f.containerConfig(image, "sleep", "1000")
	if change != nil {
		change(config)
	}
	if config.Linux.SecurityContext != nil {
		container.Linux.SecurityContext.NamespaceOptions = config.Linux.SecurityContext.NamespaceOptions
	}
	v := victim{pod: f.runPod(config), image: f.pull(image)}
	v.container = f.start(v.pod, container)
	response, err := f.Runtime.ContainerStatus(f.ctx, v.container, true)
	f.no(err)
	var info struct{ Pid int }
	f.no(json.Unmarshal([]byte(response.Info["info"]), &info))
	v.pid = info.Pid
	return v
}

// checkUntouched fails the test unless the pod runs as before.
func (f *fixture) checkUntouched(v victim) {
	f.t.Helper()
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(v.pid))); err != nil {
		f.t.Errorf("the process of an undamaged container has ended: %v", err)
	}
	if got := f.exec(v.container, "echo", "exec"); got != "exec\n" {
		f.t.Errorf("exec in an undamaged container printed %q", got)
	}
	if response, err := f.Runtime.PodSandboxStatus(f.ctx, v.id, false); err != nil || response.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		f.t.Errorf("an undamaged pod is %v, %v", response.GetStatus().GetState(), err)
	}
}

// fate describes what became of a pod.
func (f *fixture) fate(v victim) string {
	state := "pod gone"
	if response, err := f.Runtime.PodSandboxStatus(f.ctx, v.id, false); err == nil {
		state = response.Status.State.String()
	}
	response, err := f.Runtime.ContainerStatus(f.ctx, v.container, false)
	if err != nil {
		return state + ", container gone"
	}
	state += ", " + response.Status.State.String()
	if response.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if _, _, err := f.Runtime.ExecSync(f.ctx, v.container, []string{"true"}, time.Minute); err != nil {
			state += ", exec fails: " + err.Error()
		}
	}
	return state + " " + response.Status.Message
}
