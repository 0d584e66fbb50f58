/** Without a bridge the network helper counts who is connected: instances that sleep by themselves, with real VMs. */
import { Scratch } from '../harness/scratch.ts'
import { tellStory } from './auto-standby-story.ts'

tellStory(
  async () => {
    const scratch = await Scratch.make()
    return { dir: scratch.path, [Symbol.asyncDispose]: () => scratch[Symbol.asyncDispose]() }
  },
  {
    env: {},
    tracking: 'published_ports_tcp',
    addressOf: ({ network }) => ({ host: '127.0.0.1', port: network.ports[0]?.host_port ?? 0 }),
  },
)
