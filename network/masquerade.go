package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// masquerade makes traffic that leaves the pods' subnet use the node's address: one nftables table
// per address family, with one rule for all pods. It reads first and writes only if something
// differs: removing a rule makes the kernel wait for an RCU grace period, reading takes 0.1 ms.
func (d DefaultNetwork) masquerade() error {
	for _, subnet := range d.subnets() {
		conn := &nftables.Conn{}
		table := d.table(subnet)
		chain := &nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		}
		rule := &nftables.Rule{
			Table: table, Chain: chain, Exprs: masqueradeRule(subnet),
			UserData: userdata.AppendString(nil, userdata.TypeComment, "pods in "+subnet.String()),
		}
		if isOnlyRule(conn, rule) {
			continue
		}
		conn.AddTable(table)
		conn.FlushTable(table)
		conn.AddChain(chain)
		conn.AddRule(rule)
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("masquerade %s: %w", subnet, err)
		}
	}
	return nil
}

// isOnlyRule reports whether a chain consists of rule alone, going by the rule's comment. If the
// chain cannot be read, it returns false.
func isOnlyRule(conn *nftables.Conn, rule *nftables.Rule) bool {
	rules, err := conn.GetRules(rule.Table, rule.Chain)
	return err == nil && len(rules) == 1 && bytes.Equal(rules[0].UserData, rule.UserData)
}

// unmasquerade removes the tables. It is idempotent.
func (d DefaultNetwork) unmasquerade() error {
	for _, subnet := range d.subnets() {
		conn := &nftables.Conn{}
		conn.DelTable(d.table(subnet))
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove masquerading of %s: %w", subnet, err)
		}
	}
	return nil
}

func (d DefaultNetwork) table(subnet netip.Prefix) *nftables.Table {
	family := nftables.TableFamilyIPv4
	if subnet.Addr().Is6() {
		family = nftables.TableFamilyIPv6
	}
	return &nftables.Table{Name: "mica-" + d.Name, Family: family}
}

// masqueradeRule is, in nft's syntax,
//
//	ip saddr <subnet> ip daddr != <subnet> ip daddr != 224.0.0.0/4 masquerade
//
// or the same for ip6 and ff00::/8. Traffic between pods keeps its source, and
// multicast is not routed.
func masqueradeRule(subnet netip.Prefix) []expr.Any {
	// Offsets of the addresses in the IPv4 and IPv6 headers (RFC 791, 8200).
	source, destination := uint32(12), uint32(16)
	multicast := netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	if subnet.Addr().Is6() {
		source, destination = 8, 24
		multicast = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xff}), 8)
	}
	var rule []expr.Any
	rule = append(rule, matchAddress(source, expr.CmpOpEq, subnet)...)
	rule = append(rule, matchAddress(destination, expr.CmpOpNeq, subnet)...)
	rule = append(rule, matchAddress(destination, expr.CmpOpNeq, multicast)...)
	return append(rule, &expr.Masq{})
}

// matchAddress compares the address at offset of the network header with a
// prefix.
func matchAddress(offset uint32, op expr.CmpOp, prefix netip.Prefix) []expr.Any {
	address := prefix.Addr().AsSlice()
	length := uint32(len(address))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: length,
			Mask: net.CIDRMask(prefix.Bits(), len(address)*8), Xor: make([]byte, length),
		},
		&expr.Cmp{Op: op, Register: 1, Data: address},
	}
}
