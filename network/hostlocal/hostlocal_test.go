package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func args(dir, id, ipam string) Args {
	config := fmt.Sprintf(`{"name":"n","ipam":{"type":"host-local","dataDir":%q,%s}}`, dir, ipam)
	return Args{Config: []byte(config), ContainerID: id, IfName: "eth0"}
}

// add returns the addresses of an attachment.
func add(t testing.TB, dir, id, ipam string) []string {
	t.Helper()
	result, err := Add(t.Context(), args(dir, id, ipam))
	must(t, err)
	var ips []string
	for _, ip := range result.IPs {
		ips = append(ips, ip.Address.String())
	}
	return ips
}

func TestReleaseWaitsForTheLock(t *testing.T) {
	l := Leases{t.TempDir()}
	unlock, err := l.Lock(t.Context())
	must(t, err)
	must(t, os.WriteFile(filepath.Join(l.Dir, "10.0.0.2"), []byte("a\r\neth0"), 0o600))
	must(t, os.WriteFile(filepath.Join(l.Dir, "10.0.0.3"), []byte("b"), 0o600))
	must(t, os.WriteFile(filepath.Join(l.Dir, "last_reserved_ip.0"), []byte("10.0.0.3"), 0o600))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Release(ended, func(string) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("Release while another process has the lock = %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Release(t.Context(), func(id string) bool { return id == "a" }) }()
	select {
	case err := <-done:
		t.Fatalf("Release did not wait for the lock: %v", err)
	default:
	}
	unlock()
	must(t, <-done)
	if diff := cmp.Diff([]string{"10.0.0.3", "last_reserved_ip.0", "lock"}, files(t, l.Dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	must(t, Leases{filepath.Join(l.Dir, "none")}.Release(t.Context(), func(string) bool { return true }))
}

// Addresses are assigned in turn, so that a released one is not used again at once, across all ranges
// of a set, and never the gateway.
func TestAddressesInTurn(t *testing.T) {
	dir := t.TempDir()
	const ipam = `"ranges":[[{"subnet":"10.0.0.0/29","rangeStart":"10.0.0.1","rangeEnd":"10.0.0.3"},{"subnet":"10.0.1.0/29","rangeEnd":"10.0.1.2"}]]`
	var got []string
	for i, id := range []string{"a", "b", "c", "d", "e", "f"} {
		got = append(got, add(t, dir, id, ipam)...)
		if i > 0 {
			must(t, Del(t.Context(), args(dir, id, ipam)))
		}
	}
	want := []string{"10.0.0.2/29", "10.0.0.3/29", "10.0.1.2/29", "10.0.0.3/29", "10.0.1.2/29", "10.0.0.3/29"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestNoAddressIsLeasedAfterAnError(t *testing.T) {
	const two = `"ranges":[[{"subnet":"10.0.0.0/30"}],[{"subnet":"fd00::/64","rangeStart":"fd00::2","rangeEnd":"fd00::2"}]]`
	dir := t.TempDir()
	if diff := cmp.Diff([]string{"10.0.0.2/30", "fd00::2/64"}, add(t, dir, "a", two)); diff != "" {
		t.Fatalf("addresses (-want +got):\n%s", diff)
	}
	if _, err := Add(t.Context(), args(dir, "a", two)); err == nil || !strings.Contains(err.Error(), "is allocated to a already") {
		t.Errorf("second Add = %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "n", "10.0.0.2")))
	if _, err := Add(t.Context(), args(dir, "b", two)); err == nil || !strings.Contains(err.Error(), "no addresses available") {
		t.Errorf("Add without a free IPv6 address = %v", err)
	}
	if diff := cmp.Diff([]string{"fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"}, files(t, filepath.Join(dir, "n"))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestRequestedAddresses(t *testing.T) {
	const ipam = `"subnet":"10.0.0.0/24"`
	for request, want := range map[string]string{
		`"runtimeConfig":{"ips":["10.0.0.9/24"]}`:                   "10.0.0.9/24",
		`"args":{"cni":{"ips":["10.0.0.8"]}}`:                       "10.0.0.8/24",
		`"runtimeConfig":{"ips":["10.0.0.1"]}`:                      "is the gateway",
		`"runtimeConfig":{"ips":["10.0.1.1"]}`:                      "are in no range",
		`"runtimeConfig":{"ips":["10.0.0.77"]}`:                     "is not available",
		`"runtimeConfig":{"ipRanges":[[{"subnet":"10.9.0.0/24"}]]}`: "10.9.0.2/24",
	} {
		dir := t.TempDir()
		must(t, Leases{filepath.Join(dir, "n")}.Take(t.Context(), netip.MustParseAddr("10.0.0.77"), "other", "eth0"))
		a := args(dir, "a", ipam)
		a.Config = []byte(strings.Replace(string(a.Config), "{", "{"+request+",", 1))
		result, err := Add(t.Context(), a)
		got := fmt.Sprint(err)
		if err == nil {
			got = result.IPs[0].Address.String()
		}
		if !strings.Contains(got, want) {
			t.Errorf("with %s: %s, want %s", request, got, want)
		}
	}
}

func TestUnsupportedConfigurations(t *testing.T) {
	for ipam, want := range map[string]string{
		`"subnet":"10.0.0.0/24"`:                               "<nil>",
		`"subnet":"10.0.0.0/24","colour":"red"`:                "unknown field",
		`"ranges":[[{"subnet":"10.0.0.0/24","colour":"red"}]]`: "unknown field",
		`"ranges":[]`:            "no IP ranges",
		`"ranges":[[]]`:          "empty range set",
		`"subnet":"10.0.0.5/24"`: "host bits",
		`"subnet":"10.0.0.0/31"`: "too small",
		`"subnet":"10.0.0.0/24","gateway":"10.0.1.1"`:                                 "gateway 10.0.1.1 is not in",
		`"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"`:        "is after",
		`"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"10.0.0.0/25"}]]`:              "overlaps",
		`"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/25"}]]`:            "overlaps",
		`"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]`:                "mixed address families",
		`"subnet":"10.0.0.0/24","routes":[{"dst":"0.0.0.0/0"}],"resolvConf":"/etc/x"`: "<nil>",
	} {
		if got := fmt.Sprint(Supports(args("/x", "a", ipam).Config)); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", ipam, got, want)
		}
	}
}

// Old versions of the plugin wrote leases without the interface.
func TestOldLeases(t *testing.T) {
	const ipam = `"subnet":"10.0.0.0/24"`
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "n"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "n", "10.0.0.7"), []byte("a"), 0o600))
	must(t, Check(t.Context(), args(dir, "a", ipam)))
	must(t, Del(t.Context(), args(dir, "a", ipam)))
	if err := Check(t.Context(), args(dir, "a", ipam)); err == nil {
		t.Error("Check succeeds without a lease")
	}
	must(t, Del(t.Context(), args(dir, "a", ipam)))
	if err := (Leases{filepath.Join(dir, "n")}).Take(t.Context(), netip.MustParseAddr("10.0.0.7"), "b", "eth0"); err != nil {
		t.Error(err)
	}
	if err := (Leases{filepath.Join(dir, "n")}).Take(t.Context(), netip.MustParseAddr("10.0.0.7"), "c", "eth0"); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Take of a leased address = %v", err)
	}
}
