/** The daemon's death under VMs of Cloud Hypervisor, where its program and KVM are at hand (make test-kvm). */
import { test } from 'node:test'
import { whyNoCloudHypervisor } from '../harness/cloud-hypervisor-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { inOwnNetwork, isInOwnNetwork } from '../harness/own-network.ts'
import { tellBridgedDeaths } from './bridged-deaths.ts'

const why = isInOwnNetwork ? undefined : await whyNoCloudHypervisor(agentManners)

if (why !== undefined) test('deaths of a daemon with Cloud Hypervisor', { skip: why }, () => undefined)
else if (inOwnNetwork(import.meta.filename)) tellBridgedDeaths('cloud-hypervisor')
