package builtin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/network/hostlocal"
)

// masquerade makes traffic that leaves the subnets of the pods use the node's address (ipMasq): one
// rule for each range of addresses, for all pods.
func (p *Plugins) masquerade(c call) error {
	pools, err := hostlocal.Pools(c.Config)
	if err != nil {
		return err
	}
	return p.withTables(func(conn *nftables.Conn) error {
		for _, ipv6 := range []bool{false, true} {
			t := tableOf(c.conf.Name, ipv6)
			var rules []rule
			for _, pool := range pools {
				if pool.First.Is6() == ipv6 {
					rules = append(rules, t.masqueradeRule(pool))
				}
			}
			if len(rules) == 0 {
				continue
			}
			if err := p.ensure(conn, c.conf.Name, t, rules); err != nil {
				return err
			}
		}
		return nil
	})
}

// masqueradeRule is, in nft's syntax,
//
//	ip saddr <first>-<last> ip daddr != <subnet> ip daddr != 224.0.0.0/4 masquerade
//
// or the same for ip6 and ff00::/8. Traffic within the subnet keeps its source, and multicast is not
// routed.
func (t table) masqueradeRule(pool hostlocal.Pool) rule {
	source, destination := t.offsets()
	multicast := netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	if t.ipv6 {
		multicast = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
	}
	exprs := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: t.length()},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: pool.First.AsSlice()},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: pool.Last.AsSlice()},
	}
	for _, excluded := range []netip.Prefix{pool.Subnet, multicast} {
		exprs = append(exprs,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: t.length()},
			&expr.Bitwise{
				SourceRegister: 1, DestRegister: 1, Len: t.length(),
				Mask: maskOf(excluded.Bits(), t.length()), Xor: make([]byte, t.length()),
			},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: excluded.Addr().AsSlice()},
		)
	}
	return rule{
		chain: postroutingChain, comment: masqueradePrefix + fmt.Sprintf("%s-%s in %s", pool.First, pool.Last, pool.Subnet),
		exprs: append(exprs, &expr.Masq{}),
	}
}

// masqueradePrefix begins the comments of the rules of [table.masqueradeRule].
const masqueradePrefix = "pods "

// PruneMasquerading removes the masquerading of all ranges that none of the configurations of a network
// masquerades.
func (p *Plugins) PruneMasquerading(network string, lists []*libcni.NetworkConfigList) error {
	wanted := map[string]bool{}
	for _, list := range lists {
		for _, plugin := range list.Plugins {
			var b struct{ IPMasq bool }
			if json.Unmarshal(plugin.Bytes, &b) != nil || !b.IPMasq || plugin.Network.Type != "bridge" {
				continue
			}
			config, err := withName(plugin.Bytes, network)
			if err != nil {
				return err
			}
			pools, err := hostlocal.Pools(config)
			if err != nil {
				return err
			}
			for _, pool := range pools {
				wanted[tableOf(network, pool.First.Is6()).masqueradeRule(pool).comment] = true
			}
		}
	}
	return p.withTables(func(conn *nftables.Conn) error {
		tables, err := existing(conn, network)
		for _, t := range tables {
			err = errors.Join(err, removeRules(conn, t.Table, []string{postroutingChain}, func(comment string) bool {
				return strings.HasPrefix(comment, masqueradePrefix) && !wanted[comment]
			}))
		}
		return err
	})
}

// removeRules removes the rules of existing chains by their comments. The table must exist.
func removeRules(conn *nftables.Conn, t *nftables.Table, chains []string, drop func(comment string) bool) error {
	present, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, chain := range present {
		if chain.Table.Name != t.Name || !slices.Contains(chains, chain.Name) {
			continue
		}
		rules, err := conn.GetRules(t, chain)
		if err != nil {
			return fmt.Errorf("list rules of table %s: %w", t.Name, err)
		}
		for _, r := range rules {
			if comment, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && drop(comment) {
				if err := conn.DelRule(r); err != nil {
					return fmt.Errorf("remove rule of table %s: %w", t.Name, err)
				}
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove rules of table %s: %w", t.Name, err)
	}
	return nil
}

// RemoveExecutablesRules removes the nftables rules that the executables bridge and portmap make for a
// container on nodes without iptables.
func RemoveExecutablesRules(network, id string) error {
	conn := &nftables.Conn{}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	var errs []error
	for _, t := range tables {
		switch t.Name {
		case "cni_hostport":
			errs = append(errs, removeRules(conn, t, []string{"hostports", "hostip_hostports", "masquerading"}, func(comment string) bool {
				return comment == id
			}))
		case "cni_plugins_masquerade":
			errs = append(errs, removeRules(conn, t, []string{"masq_checks"}, func(comment string) bool {
				_, owner, ok := strings.Cut(comment, "net: "+network+", ")
				_, owner, named := strings.Cut(owner, "id: ")
				const enough = 12 // long comments are cut off
				return ok && named && len(owner) >= min(enough, len(id)) && strings.HasPrefix(id, owner)
			}))
		}
	}
	return errors.Join(errs...)
}

// Probe returns an error if the kernel lacks something that the tables need. It makes and removes a
// table that no network uses.
func (p *Plugins) Probe() error {
	return p.withTables(probeTables)
}

func probeTables(conn *nftables.Conn) error {
	const network = "-probe" // no network name begins so
	families := []bool{false, true}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		families = families[:1] // without IPv6 no pod has an IPv6 address
	}
	for _, ipv6 := range families {
		t := tableOf(network, ipv6)
		rules := t.portRules([]int{0})
		pool := hostlocal.Pool{First: netip.IPv4Unspecified(), Last: netip.IPv4Unspecified(), Subnet: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
		if ipv6 {
			pool = hostlocal.Pool{First: netip.IPv6Unspecified(), Last: netip.IPv6Unspecified(), Subnet: netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
		}
		if err := t.make(conn, append(rules, t.masqueradeRule(pool))); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("nftables cannot be used: %w", err)
		}
		conn.DelTable(t.Table)
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) { // another daemon's probe removed it
			return fmt.Errorf("remove table %s: %w", t.Name, err)
		}
	}
	return nil
}
