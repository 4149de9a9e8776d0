package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Names in the tables.
const (
	preroutingChain  = "prerouting"
	outputChain      = "output"
	postroutingChain = "postrouting"
	portsChain       = "host-ports"

	forwardMap        = "forward"
	forwardAddressMap = "forward-address"
	hairpinSet        = "hairpin"
	hairpinAddressSet = "hairpin-address"
)

// Hook priorities. Rules of others come first: iptables and kube-proxy in every mode are at -100 and
// 100, firewalld is at -90 and 110.
const (
	dnatPriority = -99
	snatPriority = 101
)

// maxHostPorts is how many host ports a network may have per address family, with a hostIP and without.
//
// The sets have a size because the kernel's resizable hash table moves elements in the background, so
// that dumps of several messages skip and repeat elements. With a size, the kernel uses a fixed array
// (nft_hash in net/netfilter/nft_set_hash.c), whose dumps are exact while nobody changes the set. The
// arrays take 768 KiB per table: 8 bytes per bucket, two buckets per element.
const maxHostPorts = 8192

// sourcesPerPort is the maximum number of elements of a host port in the hairpin sets.
const sourcesPerPort = 2

// batchSize is the maximum number of elements in a transaction. They take about 150 bytes each. The
// limits are 64 KiB for a netlink attribute, and the socket's send buffer (net.core.wmem_default,
// usually 208 KiB) for a transaction.
const batchSize = 100

// masqueradeBit is the bit of the packet mark that the plugin portmap uses by default. Packets to a
// host port get it if their answers would not come back otherwise, and are masqueraded.
const masqueradeBit = 13

// table is the table of one network and address family.
type table struct {
	*nftables.Table
	ipv6 bool
}

// tablePrefix begins with a name that no network has, since names have no slash.
const tablePrefix = "mica/"

func tableOf(network string, ipv6 bool) table {
	family := nftables.TableFamilyIPv4
	if ipv6 {
		family = nftables.TableFamilyIPv6
	}
	return table{&nftables.Table{Name: tablePrefix + network, Family: family}, ipv6}
}

// length is the length of an address in bytes.
func (t table) length() uint32 {
	if t.ipv6 {
		return 16
	}
	return 4
}

// offsets returns the offsets of source and destination in the IPv4 or IPv6 header (RFC 791, 8200).
func (t table) offsets() (source, destination uint32) {
	if t.ipv6 {
		return 8, 24
	}
	return 12, 16
}

// sets returns the maps and sets of the table. Keys are a protocol and a host port, preceded by the
// node's address for mappings with a hostIP. The values of the maps are the pod's address and port.
// The keys of the hairpin sets end with the network of a source to masquerade.
func (t table) sets() map[string]*nftables.Set {
	address, protocol, port := nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService
	if t.ipv6 {
		address = nftables.TypeIP6Addr
	}
	join := nftables.MustConcatSetType
	const maxSources = sourcesPerPort * maxHostPorts
	sets := map[string]*nftables.Set{
		forwardMap:        {KeyType: join(protocol, port), DataType: join(address, port), IsMap: true, Size: maxHostPorts},
		forwardAddressMap: {KeyType: join(address, protocol, port), DataType: join(address, port), IsMap: true, Size: maxHostPorts},
		hairpinSet:        {KeyType: join(protocol, port, address), Size: maxSources},
		hairpinAddressSet: {KeyType: join(address, protocol, port, address), Size: maxSources},
	}
	for name, set := range sets {
		set.Table, set.Name, set.KeyByteOrder = t.Table, name, binaryutil.BigEndian
	}
	return sets
}

// setNames returns the names of the sets in a fixed order.
func setNames() []string {
	return []string{forwardMap, forwardAddressMap, hairpinSet, hairpinAddressSet}
}

// change sends elements by put, which is a method of conn, in transactions of at most batchSize
// elements. They come in the order of setNames. After an error, earlier transactions stay in effect.
func (t table) change(conn *nftables.Conn, elements map[string][]nftables.SetElement, put func(*nftables.Set, []nftables.SetElement) error) error {
	sets := t.sets()
	room := batchSize
	for _, name := range setNames() {
		for rest := elements[name]; len(rest) > 0; {
			n := min(room, len(rest))
			if err := put(sets[name], rest[:n]); err != nil {
				return err
			}
			rest, room = rest[n:], room-n
			if room > 0 {
				continue
			}
			if err := conn.Flush(); err != nil {
				return err
			}
			room = batchSize
		}
	}
	return conn.Flush()
}

func (t table) chains() []*nftables.Chain {
	nat := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Name: name, Table: t.Table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: &priority}
	}
	return []*nftables.Chain{
		nat(preroutingChain, nftables.ChainHookPrerouting, dnatPriority),
		nat(outputChain, nftables.ChainHookOutput, dnatPriority),
		nat(postroutingChain, nftables.ChainHookPostrouting, snatPriority),
		{Name: portsChain, Table: t.Table},
	}
}

// rule is a rule that a chain must have. Its comment identifies it.
type rule struct {
	chain, comment string
	front          bool // it comes before rules without front
	exprs          []expr.Any
}

// Registers of 32 bits; keys begin in the first one.
const firstRegister = unix.NFT_REG32_00

// portRules returns the rules for host ports. masks are the prefix lengths of the sources in the
// hairpin sets.
func (t table) portRules(masks []int) []rule {
	toPorts := []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: portsChain},
	}
	rules := []rule{
		{chain: preroutingChain, comment: "host ports", exprs: toPorts},
		{chain: outputChain, comment: "host ports", exprs: toPorts},
		{chain: portsChain, comment: "to the pod, by address", exprs: t.forward(forwardAddressMap, true)},
		{chain: portsChain, comment: "to the pod", exprs: t.forward(forwardMap, false)},
	}
	for _, bits := range masks {
		rules = append(rules,
			rule{portsChain, fmt.Sprintf("masquerade sources /%d", bits), true, t.mark(hairpinSet, false, bits)},
			rule{portsChain, fmt.Sprintf("masquerade sources /%d, by address", bits), true, t.mark(hairpinAddressSet, true, bits)},
		)
	}
	if len(masks) > 0 {
		bit := binaryutil.NativeEndian.PutUint32(1 << masqueradeBit)
		rules = append(rules, rule{postroutingChain, "marked", true, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bit, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bit},
			&expr.Masq{},
		}})
	}
	return rules
}

// key loads the key of a host port, and returns the next free register.
func (t table) key(byAddress bool) (load []expr.Any, next uint32) {
	next = firstRegister
	if byAddress {
		_, destination := t.offsets()
		load = append(load, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: t.length()})
		next += t.length() / 4
	}
	const portOffset = 2 // of the destination port in TCP, UDP and SCTP
	return append(load,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: portOffset, Len: 2},
	), next + 2
}

// forward redirects a packet whose key is in a map to the pod.
func (t table) forward(name string, byAddress bool) []expr.Any {
	load, _ := t.key(byAddress)
	family := uint32(unix.NFPROTO_IPV4)
	if t.ipv6 {
		family = unix.NFPROTO_IPV6
	}
	return append(load,
		&expr.Lookup{SourceRegister: firstRegister, DestRegister: firstRegister, IsDestRegSet: true, SetName: name},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: family,
			RegAddrMin: firstRegister, RegProtoMin: firstRegister + t.length()/4, Specified: true,
		},
	)
}

// mark sets the masquerade bit of a packet whose key and source network are in a set.
func (t table) mark(name string, byAddress bool, bits int) []expr.Any {
	load, next := t.key(byAddress)
	source, _ := t.offsets()
	zero := make([]byte, t.length())
	bit := uint32(1) << masqueradeBit
	return append(load,
		&expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: t.length()},
		&expr.Bitwise{SourceRegister: next, DestRegister: next, Len: t.length(), Mask: maskOf(bits, t.length()), Xor: zero},
		&expr.Lookup{SourceRegister: firstRegister, SetName: name},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: binaryutil.NativeEndian.PutUint32(bit),
		},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	)
}

// maskOf returns the mask of a prefix length, for addresses of length bytes.
func maskOf(bits int, length uint32) []byte {
	mask := make([]byte, length)
	for bit := range bits {
		mask[bit/8] |= 1 << (7 - bit%8)
	}
	return mask
}

// ensure adds the rules that are missing. It reads first, and writes only if something is missing:
// reading takes 0.1 ms.
func (p *Plugins) ensure(conn *nftables.Conn, network string, t table, rules []rule) error {
	missing := missingRules(conn, t, rules)
	if len(missing) == 0 {
		return nil
	}
	if err := p.record(network); err != nil {
		return err
	}
	if err := t.make(conn, missing); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make table %s: %w", t.Name, err)
	}
	return nil
}

// make puts the table, its chains and sets, and rules into conn.
func (t table) make(conn *nftables.Conn, rules []rule) error {
	conn.AddTable(t.Table)
	for _, c := range t.chains() {
		conn.AddChain(c)
	}
	sets := t.sets()
	for _, name := range setNames() {
		if err := conn.AddSet(sets[name], nil); err != nil {
			return fmt.Errorf("make table %s: %w", t.Name, err)
		}
	}
	for _, r := range rules {
		added := &nftables.Rule{
			Table: t.Table, Chain: &nftables.Chain{Name: r.chain}, Exprs: r.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		}
		if r.front {
			conn.InsertRule(added)
		} else {
			conn.AddRule(added)
		}
	}
	return nil
}

// missingRules returns the rules that the table does not have. If it cannot be read, it has none.
func missingRules(conn *nftables.Conn, t table, rules []rule) []rule {
	present := map[string]map[string]bool{} // chain → comments
	var missing []rule
	for _, r := range rules {
		if present[r.chain] == nil {
			present[r.chain] = map[string]bool{}
			found, _ := conn.GetRules(t.Table, &nftables.Chain{Name: r.chain})
			for _, f := range found {
				if comment, ok := userdata.GetString(f.UserData, userdata.TypeComment); ok {
					present[r.chain][comment] = true
				}
			}
		}
		if !present[r.chain][r.comment] {
			missing = append(missing, r)
		}
	}
	return missing
}

// Networks returns the networks that may have tables.
func (p *Plugins) Networks() ([]string, error) {
	entries, err := os.ReadDir(p.stateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var networks []string
	for _, e := range entries {
		networks = append(networks, e.Name())
	}
	return networks, nil
}

// record writes the name of a network to the state directory.
func (p *Plugins) record(network string) error {
	err := os.MkdirAll(p.stateDir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(p.stateDir, network), nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record table: %w", err)
	}
	return nil
}

// RemoveNetwork removes the tables of a network. It is idempotent. No pod of the network may be left.
func (p *Plugins) RemoveNetwork(network string) error {
	err := p.withTables(func(conn *nftables.Conn) error {
		tables, err := existing(conn, network)
		for _, t := range tables {
			conn.DelTable(t.Table)
			err = errors.Join(err, conn.Flush())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove tables of network %s: %w", network, err)
	}
	if err := os.Remove(filepath.Join(p.stateDir, network)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of table: %w", err)
	}
	return nil
}

// existing returns the tables of a network that exist.
func existing(conn *nftables.Conn, network string) ([]table, error) {
	var found []table
	for _, ipv6 := range []bool{false, true} {
		t := tableOf(network, ipv6)
		list, err := conn.ListTablesOfFamily(t.Family)
		if err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		if slices.ContainsFunc(list, func(other *nftables.Table) bool { return other.Name == t.Name }) {
			found = append(found, t)
		}
	}
	return found, nil
}
