package spec

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities is what a container gets by default: the same fourteen as in Docker and
// containerd.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
		"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
		"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// capabilities computes the capability sets. ALL is applied first, for both lists, then single
// names: first those to add, then those to drop. The inheritable set contains only the ambient
// capabilities, which have to be in every set (capabilities(7)).
func (b *builder) capabilities() (*specs.LinuxCapabilities, error) {
	held := b.in.Host.Capabilities
	if b.sc.GetPrivileged() {
		return capabilitySets(sorted(held), nil), nil
	}
	req := b.sc.GetCapabilities()
	add, addAll, err := parseCapabilities(req.GetAddCapabilities())
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := parseCapabilities(req.GetDropCapabilities())
	if err != nil {
		return nil, err
	}
	ambient, ambientAll, err := parseCapabilities(req.GetAddAmbientCapabilities())
	if err != nil {
		return nil, err
	}
	set := intersect(defaultCapabilities(), held)
	if addAll {
		set = slices.Clone(held)
	}
	if dropAll {
		set = nil
	}
	if ambientAll {
		ambient = slices.Clone(held)
	}
	for _, c := range slices.Concat(add, ambient) {
		if !slices.Contains(held, c) {
			return nil, unsupported("capability %s: not held by this node's runtime", c)
		}
		set = append(set, c)
	}
	set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return slices.Contains(drop, c) })
	return capabilitySets(sorted(set), sorted(ambient)), nil
}

func capabilitySets(set, ambient []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{
		Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient,
	}
}

// parseCapabilities converts names to the form CAP_X, sorted and without duplicates. It removes ALL
// and reports it separately.
func parseCapabilities(names []string) (caps []string, all bool, err error) {
	if len(names) == 0 {
		return nil, false, nil
	}
	asked := map[string]bool{} // known capability → requested
	for _, k := range capability.ListKnown() {
		asked[capabilityName(k)] = false
	}
	for _, name := range names {
		c := strings.ToUpper(name)
		if c == "ALL" || c == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if _, known := asked[c]; !known {
			return nil, false, invalid("unknown capability %q", name)
		}
		asked[c] = true
	}
	maps.DeleteFunc(asked, func(_ string, asked bool) bool { return !asked })
	return slices.Sorted(maps.Keys(asked)), all, nil
}

// capabilityName returns the OCI specification's name of c.
func capabilityName(c capability.Cap) string { return "CAP_" + strings.ToUpper(c.String()) }

func intersect(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}

// sorted returns a sorted copy without duplicates.
func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}
