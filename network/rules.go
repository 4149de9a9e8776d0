package network

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/micarun/mica/network/hostlocal"
)

// ruleOwner is the pod that packet filter rules belong to, as plugins write it into rule comments.
type ruleOwner struct{ network, id string }

// ownerComment finds the owner in a rule comment as iptables-save prints it. The plugins bridge and
// ptp write name and id; portmap puts "dnat" in front.
var ownerComment = regexp.MustCompile(`name: \\"([^"\\]+)\\" id: \\"([0-9A-Za-z_.-]+)\\"`)

// chains returns the names of the owner's chains, for masquerading (ipMasq) and for host ports, as
// the plugins derive them (utils.FormatChainName).
func (o ruleOwner) chains() []string {
	sum := sha512.Sum512([]byte(o.network + o.id))
	const longest = 28 // XT_EXTENSION_MAXNAMELEN less the terminating zero
	var names []string
	for _, prefix := range []string{"CNI-", "CNI-DN-", "CNI-SN-"} {
		names = append(names, (prefix + hex.EncodeToString(sum[:]))[:longest])
	}
	return names
}

// natRules returns the lines of the nat table, or nil if the tool is not installed.
func natRules(ctx context.Context, tool string) ([]string, error) {
	out, err := exec.CommandContext(ctx, tool+"-save", "-t", "nat").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules by %s-save: %w", tool, err)
	}
	return strings.Split(string(out), "\n"), nil
}

// leftoverRules returns the owners of rules in lines that belong to one of the networks but to no
// live pod.
func leftoverRules(lines []string, networks []string, alive func(id string) bool) []ruleOwner {
	var leftovers []ruleOwner
	for _, line := range lines {
		m := ownerComment.FindStringSubmatch(line)
		if m == nil || !slices.Contains(networks, m[1]) || alive(m[2]) {
			continue
		}
		if o := (ruleOwner{m[1], m[2]}); !slices.Contains(leftovers, o) {
			leftovers = append(leftovers, o)
		}
	}
	return leftovers
}

// removal returns the iptables-restore input that removes the rules and chains of the owners. lines
// is the current table.
func removal(lines []string, owners []ruleOwner) string {
	var doomed []string
	for _, o := range owners {
		doomed = append(doomed, o.chains()...)
	}
	var rules, flush, remove []string
	for _, line := range lines {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, ":"), " "); ok && strings.HasPrefix(line, ":") && slices.Contains(doomed, name) {
			flush, remove = append(flush, "-F "+name), append(remove, "-X "+name)
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "-A" || slices.Contains(doomed, fields[1]) {
			continue // flushing the chain removes its rules
		}
		if at := slices.Index(fields, "-j"); at > 0 && at+1 < len(fields) && slices.Contains(doomed, fields[at+1]) {
			rules = append(rules, "-D "+strings.TrimPrefix(line, "-A "))
		}
	}
	script := slices.Concat([]string{"*nat"}, rules, flush, remove, []string{"COMMIT", ""})
	return strings.Join(script, "\n")
}

// sweepRules removes rules of dead pods that no record covers. One source is the bridge plugin
// with ipMasq, which leaks them if the pod's namespace is removed first.
func (n *Network) sweepRules(ctx context.Context, alive func(string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	return removeRules(ctx, n.networkNames(), orForeign(alive))
}

// removeRules removes the rules that executables made for one of the networks and a pod that is not
// alive.
func removeRules(ctx context.Context, networks []string, alive func(string) bool) error {
	var errs []error
	for _, tool := range []string{"iptables", "ip6tables"} {
		lines, err := natRules(ctx, tool)
		leftovers := leftoverRules(lines, networks, alive)
		if err != nil || len(leftovers) == 0 {
			errs = append(errs, err)
			continue
		}
		restore := exec.CommandContext(ctx, tool+"-restore", "--noflush", "--wait", "5")
		restore.Stdin = strings.NewReader(removal(lines, leftovers))
		if out, err := restore.CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("remove rules by %s-restore: %w: %s", tool, err, strings.TrimSpace(string(out))))
		}
	}
	return errors.Join(errs...)
}

// networkNames returns the networks that belong to Mica alone: the configured one and the default.
// In the CNI specification, a network belongs to one runtime.
func (n *Network) networkNames() []string {
	var names []string
	if c := n.current(); c.err == nil && c.list != nil {
		names = append(names, c.list.Name)
	}
	if n.opts.Default != nil {
		names = append(names, n.opts.Default.Name)
	}
	return names
}

// orForeign extends alive to pods of another runtime on the node that uses the same network. By
// default such a runtime's libcni caches results in /var/lib/cni/results, which Mica does not use.
func orForeign(alive func(id string) bool) func(id string) bool {
	return func(id string) bool {
		const results = "/var/lib/cni/results"
		found, err := filepath.Glob(filepath.Join(results, "*-"+id+"-*"))
		return alive(id) || err != nil || len(found) > 0
	}
}

// configuredLeases returns the host-local directories of the configured network; none for the
// default network.
func (n *Network) configuredLeases() []hostlocal.Leases {
	if c := n.current(); c.err == nil && c.list != nil && c.source != "" {
		return hostLocal(c.list)
	}
	return nil
}

// LiveLeftovers finds what Options.Leftovers cannot see: packet filter rules, and leases of the
// configured network, whose pod is not in live. It changes nothing. An error of one source does not
// hide leftovers in the others.
func (n *Network) LiveLeftovers(ctx context.Context, live []string) ([]Leftover, error) {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	alive := orForeign(n.alive(live))
	var leftovers []Leftover
	var errs []error
	for _, l := range n.configuredLeases() {
		leased, err := l.Owners()
		errs = append(errs, err)
		for path, id := range leased {
			if !alive(id) {
				leftovers = append(leftovers, Leftover{path, fmt.Sprintf("lease of unknown pod %q", id)})
			}
		}
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		lines, err := natRules(ctx, tool)
		errs = append(errs, err)
		for _, o := range leftoverRules(lines, n.networkNames(), alive) {
			leftovers = append(leftovers, Leftover{tool + " nat " + o.chains()[0], fmt.Sprintf("rules of network %s for unknown pod %q", o.network, o.id)})
		}
	}
	tables, err := n.tableLeftovers(alive)
	return append(leftovers, tables...), errors.Join(append(errs, err)...)
}
