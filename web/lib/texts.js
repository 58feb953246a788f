// What the panels say, by language.

const ENGLISH = {
  chartHint: "Run: the threshold and the image of each step appear here.",
  viewHint: "Run: the stages appear here, over each other.",
  readingHint: "Run: what was read of the prompt appears here.",
  emptyPrompt: "the empty prompt",
  tokens: (count, limit) => `${count} of ${limit} tokens`,
  cut: (text) => `Too long, not read: ${text}`,
  change: (part, text) => `from ${Math.round(100 * part)} %: ${text}`,
  noThreshold: "no threshold",
  notANumber: "s not a number",
  step: (i, count) => `step ${i}/${count}`,
  clipped: (percent) => `clipped ${percent} %`,
  onTop: (stage) => `on top: ${stage}`,
  loupe: "zoom of the loupe",
  pin: "pin",
  pinTip: "keep this run, to compare the next ones with it",
  kept: "pinned",
  now: "now",
  split: "line between the pinned run and this one",
  fullScreen: "full screen",
  before: "picture before",
  next: "next picture",
  picture: "The stages over each other. Arrow keys move the loupe, + and - zoom, Page Up and Page Down change the stage.",
  farFrom64: (size) => `Far from 64: the base was trained near 64 x 64, ${size} repeats or stretches things.`,
  allChanged: (name) => `strength 1.00 keeps nothing of ${name}: lower it, or connect a mask.`,
  huge: (size) => `Makes ${size}: that takes long; tile saves memory.`,
  size: (width, height, seconds) => `${width} × ${height} · ${seconds} s`,
};

const CHINESE = {
  chartHint: "运行后，这里显示每一步的阈值与图像。",
  viewHint: "运行后，各阶段的图像叠放在这里。",
  readingHint: "运行后，这里显示实际读到的提示词。",
  emptyPrompt: "空提示词",
  tokens: (count, limit) => `${count}/${limit} 个词元`,
  cut: (text) => `过长，未读取：${text}`,
  change: (part, text) => `从 ${Math.round(100 * part)} % 起：${text}`,
  noThreshold: "无阈值",
  notANumber: "s 不是数",
  step: (i, count) => `第 ${i}/${count} 步`,
  clipped: (percent) => `截断 ${percent} %`,
  onTop: (stage) => `置于最上：${stage}`,
  loupe: "放大镜倍数",
  pin: "固定",
  pinTip: "保留这次运行，与之后的运行对比",
  kept: "已固定",
  now: "当前",
  split: "固定的运行与当前运行之间的分界线",
  fullScreen: "全屏",
  before: "上一张",
  next: "下一张",
  picture: "各阶段的图像叠放。方向键移动放大镜，+ 和 - 缩放，Page Up 和 Page Down 切换阶段。",
  farFrom64: (size) => `远离 64：基础阶段按约 64 x 64 训练，${size} 会使内容重复或变形。`,
  allChanged: (name) => `strength 为 1.00 时不保留 ${name} 的任何内容：请调低，或连接遮罩。`,
  huge: (size) => `将生成 ${size}：耗时很长；分块可节省内存。`,
  size: (width, height, seconds) => `${width} × ${height} · ${seconds} 秒`,
};

// locale   of ComfyUI's settings, such as "en" or "zh"
export function textsOf(locale) {
  return String(locale ?? "").startsWith("zh") ? CHINESE : ENGLISH;
}
