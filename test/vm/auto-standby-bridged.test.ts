/** On a bridge the kernel's table of connections tells who is connected: instances that sleep by themselves, with real VMs. */
import { makeLab } from '../harness/bridged-lab.ts'
import { inOwnNetwork } from '../harness/own-network.ts'
import { tellStory } from './auto-standby-story.ts'

if (inOwnNetwork(import.meta.filename)) {
  tellStory(makeLab, {
    env: { DORMOUSE_NETWORK: 'bridged' },
    tracking: 'conntrack_events_v4_tcp',
    addressOf: ({ network }) => ({ host: network.ip, port: 7 }),
  })
}
